// Packed linears against the product with their decoded weights, all ways of decoding.

#include "lib/inference/packed_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lib/format/packing.h"
#include "lib/format/quantized_linear.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

QuantizedLinear RandomLinear(Encoding encoding, int bits, int64_t out, int64_t in) {
  std::mt19937 random(static_cast<uint32_t>(bits * 1000 + out + in));
  std::normal_distribution<float> normal(0, 0.1f);
  QuantizedLinear linear;
  linear.encoding = encoding;
  linear.bits = bits;
  linear.out_features = out;
  linear.in_features = in;
  std::vector<uint8_t> codes(out * in);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  linear.packed = PackCodes(codes, out, in, bits);
  if (encoding == Encoding::kLut) {
    for (int64_t i = 0; i < out << bits; ++i) linear.lut.push_back(Float16Bits(normal(random)));
  } else {
    linear.group_size = 48;
    for (int64_t i = 0; i < out * ((in + 47) / 48); ++i) {
      linear.scale.push_back(Float16Bits(std::abs(normal(random))));
      linear.zero_point.push_back(static_cast<uint8_t>(random() & ((1u << bits) - 1)));
    }
  }
  return linear;
}

// Keeps one weight in 150 apart, the second row without any.
void AddOutliers(QuantizedLinear* linear) {
  std::mt19937 random(5);
  std::vector<float> weights = DequantizeDense(*linear);
  std::vector<uint8_t> apart(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    apart[i] = random() % 150 == 0 && i / linear->in_features != 1;
    weights[i] += static_cast<float>(static_cast<int>(random() % 201) - 100) / 100.0f;
  }
  ASSERT_TRUE(SetOutliers(weights, apart, linear).ok());
}

// Which form, and in which type: what the oracle of the CUDA kernels computes in fp16 differs from
// fp32 by the rounding of activations and results.
struct Way {
  PackedForm form;
  at::ScalarType type;
  double tolerance;
  const char* name;
};
const Way kWays[] = {{PackedForm::kHost, at::kFloat, 2e-6, "Host"},
                     {PackedForm::kAten, at::kFloat, 2e-6, "Aten"},
                     {PackedForm::kTile, at::kHalf, 2e-3, "TileFp16"},
                     {PackedForm::kTile, at::kBFloat16, 1e-2, "TileBf16"}};

at::Tensor DenseWeights(const QuantizedLinear& linear) {
  const std::vector<float> dense = Dequantize(linear);
  const at::Tensor matrix = Pseudorandom({linear.out_features, linear.in_features}, 1);
  std::copy(dense.begin(), dense.end(), matrix.mutable_data_ptr<float>());
  return matrix;
}

class PackedLinearTest : public testing::TestWithParam<std::tuple<Way, Encoding, int>> {};

TEST_P(PackedLinearTest, EqualsTheDecodedProduct) {
  const auto& [way, encoding, bits] = GetParam();
  ThreadPool pool(2);
  // The second needs several panels, or in tile form two runs of outliers.
  const auto large = way.form == PackedForm::kTile ? std::pair<int64_t, int64_t>{28, 4200}
                                                   : std::pair<int64_t, int64_t>{150, 8200};
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{70, 101}, large}) {
    QuantizedLinear linear = RandomLinear(encoding, bits, out, in);
    // At some widths: with outliers is another path.
    if (bits % 2 == 1) AddOutliers(&linear);
    std::vector<BlockWeights> weights(1);
    const at::Tensor bias = Pseudorandom({out}, 7).to(way.type);
    weights[0].bias[static_cast<int>(LinearKind::kUp)] = bias;
    PackedLinearOp op(weights, way.form, at::kCPU, &pool);
    op.Set(0, LinearKind::kUp, linear);
    EXPECT_LT(op.bytes(), out * in * bits / 8 + out * (4 << bits) + out * in / 4 + 16384);
    const at::Tensor matrix = DenseWeights(linear);
    for (const int64_t tokens : {1, 3, 40}) {
      const at::Tensor x = Pseudorandom({2, tokens, in}, 3).to(way.type);
      const at::Tensor expected = x.to(at::kFloat).matmul(matrix.t()).add(bias.to(at::kFloat));
      const at::Tensor y = op.Apply(0, LinearKind::kUp, x);
      EXPECT_EQ(y.scalar_type(), way.type);
      EXPECT_EQ(y.sizes(), expected.sizes());
      EXPECT_LT(ScaledDistance(y.to(at::kFloat), expected), way.tolerance)
          << out << "x" << in << ", " << tokens;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, PackedLinearTest,
                         testing::Combine(testing::ValuesIn(kWays),
                                          testing::Values(Encoding::kLut, Encoding::kAffine),
                                          testing::Values(1, 2, 3, 4, 7, 8)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  (std::get<1>(info.param) == Encoding::kLut ? "Lut" : "Affine") +
                                  std::to_string(std::get<2>(info.param));
                         });

TEST(TileLinearTest, PanelsOfManyTokens) {
  const QuantizedLinear linear = RandomLinear(Encoding::kLut, 3, 150, 40);
  PanelScratch small(1), large;
  const auto in_panels = MakeTileMatrix(linear, at::kCPU, nullptr, &small);
  const auto at_once = MakeTileMatrix(linear, at::kCPU, nullptr, &large);
  const at::Tensor x = Pseudorandom({1100, 40}, 3).to(at::kHalf);
  const at::Tensor bias = Pseudorandom({150}, 7).to(at::kHalf);
  const at::Tensor expected = x.to(at::kFloat).matmul(DenseWeights(linear).t()).add(bias);
  for (const auto& matrix : {&in_panels, &at_once}) {
    const at::Tensor y = (*matrix)->Multiply(x, bias).to(at::kFloat);
    EXPECT_LT(ScaledDistance(y, expected), 2e-3);
  }
}

// q, k and v of one block; k and v of sizes that are no multiple of a tile.
class TogetherTest : public testing::Test {
 protected:
  static constexpr int64_t kIn = 200;

  TogetherTest() : weights_(1) {
    // k has no bias.
    for (const LinearKind kind : {LinearKind::kQ, LinearKind::kV}) {
      weights_[0].bias[static_cast<int>(kind)] =
          Pseudorandom({kind == LinearKind::kQ ? 70 : 33}, 7).to(at::kHalf);
    }
  }

  static std::vector<QuantizedLinear> Linears(Encoding encoding, std::vector<int> bits) {
    std::vector<QuantizedLinear> linears;
    for (size_t i = 0; i < bits.size(); ++i)
      linears.push_back(RandomLinear(encoding, bits[i], i == 0 ? 70 : 33, kIn));
    AddOutliers(&linears[0]);
    AddOutliers(&linears[2]);
    return linears;
  }

  std::vector<at::Tensor> Together(const std::vector<QuantizedLinear>& linears,
                                   const at::Tensor& x) {
    PackedLinearOp op(weights_, PackedForm::kTile, at::kCPU, nullptr);
    op.Set(0, kQkv, linears);
    const std::vector<at::Tensor> together = op.ApplyTogether(0, kQkv, x);
    for (int i = 0; i < 3; ++i)
      EXPECT_TRUE(BitEqual(op.Apply(0, kQkv[i], x).contiguous(), together[i].contiguous())) << i;
    return together;
  }

  std::vector<at::Tensor> Apart(const std::vector<QuantizedLinear>& linears, const at::Tensor& x) {
    PackedLinearOp op(weights_, PackedForm::kTile, at::kCPU, nullptr);
    std::vector<at::Tensor> results;
    for (int i = 0; i < 3; ++i) {
      op.Set(0, kQkv[i], linears[i]);
      results.push_back(op.Apply(0, kQkv[i], x));
    }
    return results;
  }

  std::vector<BlockWeights> weights_;
};

TEST_F(TogetherTest, OneProductGivesWhatThreeGive) {
  for (const Encoding encoding : {Encoding::kLut, Encoding::kAffine}) {
    for (const int bits : {2, 3, 4}) {
      const std::vector<QuantizedLinear> linears = Linears(encoding, {bits, bits, bits});
      // Each of the three paths of tile matrices.
      for (const int64_t tokens : {1, 40, 1100}) {
        const at::Tensor x = Pseudorandom({1, tokens, kIn}, 3).to(at::kHalf);
        const std::vector<at::Tensor> together = Together(linears, x);
        const std::vector<at::Tensor> apart = Apart(linears, x);
        EXPECT_TRUE(together[0].is_alias_of(together[2]));
        for (int i = 0; i < 3; ++i) {
          EXPECT_EQ(together[i].sizes(), apart[i].sizes());
          // The library's product of many tokens may sum in another order for other shapes.
          EXPECT_LT(
              ScaledDistance(together[i].to(at::kFloat).contiguous(), apart[i].to(at::kFloat)),
              tokens == 1100 ? 1e-3 : 1e-30)
              << bits << " bits, " << tokens << " tokens, linear " << i;
        }
      }
    }
  }
}

TEST_F(TogetherTest, OtherWidthsStayApart) {
  const std::vector<QuantizedLinear> linears = Linears(Encoding::kLut, {3, 2, 3});
  const at::Tensor x = Pseudorandom({1, 2, kIn}, 3).to(at::kHalf);
  const std::vector<at::Tensor> together = Together(linears, x), apart = Apart(linears, x);
  EXPECT_FALSE(together[0].is_alias_of(together[2]));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(BitEqual(together[i], apart[i])) << i;
}

}  // namespace
}  // namespace gradq
