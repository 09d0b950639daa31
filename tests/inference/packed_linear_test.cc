// Packed linears against the product with their decoded weights, both ways of decoding.

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

class PackedLinearTest : public testing::TestWithParam<std::tuple<bool, Encoding, int>> {};

TEST_P(PackedLinearTest, EqualsTheDecodedProduct) {
  const auto& [kernels, encoding, bits] = GetParam();
  ThreadPool pool(2);
  // The second needs several panels.
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{70, 101}, {150, 8200}}) {
    QuantizedLinear linear = RandomLinear(encoding, bits, out, in);
    // At some widths: with outliers is another path.
    if (bits % 2 == 1) AddOutliers(&linear);
    std::vector<BlockWeights> weights(1);
    weights[0].bias[static_cast<int>(LinearKind::kUp)] = Pseudorandom({out}, 7);
    PackedLinearOp op(weights, at::kCPU, &pool, kernels);
    op.Set(0, LinearKind::kUp, linear);
    EXPECT_LT(op.bytes(), out * in * bits / 8 + out * (4 << bits) + out * in / 4 + 4096);
    const std::vector<float> dense = Dequantize(linear);
    const at::Tensor matrix = Pseudorandom({out, in}, 1);
    std::copy(dense.begin(), dense.end(), matrix.mutable_data_ptr<float>());
    for (const int64_t tokens : {1, 3, 40}) {
      const at::Tensor x = Pseudorandom({2, tokens, in}, 3);
      const at::Tensor expected =
          x.matmul(matrix.t()).add(weights[0].bias[static_cast<int>(LinearKind::kUp)]);
      const at::Tensor y = op.Apply(0, LinearKind::kUp, x);
      EXPECT_EQ(y.sizes(), expected.sizes());
      EXPECT_LT(ScaledDistance(y, expected), 2e-6) << out << "x" << in << ", " << tokens;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, PackedLinearTest,
                         testing::Combine(testing::Bool(),
                                          testing::Values(Encoding::kLut, Encoding::kAffine),
                                          testing::Values(1, 2, 3, 4, 7, 8)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) ? "Kernels" : "Aten") +
                                  (std::get<1>(info.param) == Encoding::kLut ? "Lut" : "Affine") +
                                  std::to_string(std::get<2>(info.param));
                         });

}  // namespace
}  // namespace gradq
