#include "lib/format/quantized_linear.h"

#include <cmath>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/format/packing.h"
#include "lib/format/safetensors.h"
#include "tests/format/random_linear.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

struct Case {
  Encoding encoding;
  int bits;
};
class QuantizedLinearTest : public ::testing::TestWithParam<Case> {
 protected:
  QuantizedLinear Make(int64_t out, int64_t in) {
    return RandomLinear("model.layers.0.mlp.up_proj", GetParam().encoding, GetParam().bits, out, in,
                        32, 7);
  }
};

TEST_P(QuantizedLinearTest, ShardKeepsEverything) {
  for (const auto& [out, in] : {std::pair{1, 1}, {3, 31}, {5, 33}, {2, 64}, {33, 100}}) {
    const QuantizedLinear linear = Make(out, in);
    ASSERT_TRUE(Validate(linear).ok()) << Validate(linear);
    const std::string bytes = SerializeShard(linear);
    const auto read = ParseShard(bytes);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->name, linear.name);
    EXPECT_EQ(read->packed, linear.packed);
    EXPECT_EQ(read->lut, linear.lut);
    EXPECT_EQ(read->scale, linear.scale);
    EXPECT_EQ(read->zero_point, linear.zero_point);
    EXPECT_EQ(read->group_size, linear.group_size);
    EXPECT_EQ(read->record.objective_initial, linear.record.objective_initial);
    EXPECT_EQ(read->record.objective_final, linear.record.objective_final);
    EXPECT_EQ(read->record.predicted_loss_increase, linear.record.predicted_loss_increase);
    EXPECT_EQ(read->record.damping, linear.record.damping);
    EXPECT_EQ(read->record.numbers, linear.record.numbers);
    EXPECT_EQ(SerializeShard(*read), bytes);
    EXPECT_EQ(Dequantize(*read), Dequantize(linear));
  }
}

TEST_P(QuantizedLinearTest, ShardKeepsOutliers) {
  for (const auto& [out, in] : {std::pair{1, 1}, {3, 31}, {33, 100}, {2, 70000}}) {
    QuantizedLinear linear = Make(out, in);
    const std::string without = SerializeShard(linear);
    AddRandomOutliers(&linear, 20, 3);
    ASSERT_TRUE(Validate(linear).ok()) << Validate(linear);
    const std::string bytes = SerializeShard(linear);
    const auto read = ParseShard(bytes);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->outliers.row_ptr, linear.outliers.row_ptr);
    EXPECT_EQ(read->outliers.col, linear.outliers.col);
    EXPECT_EQ(read->outliers.value, linear.outliers.value);
    EXPECT_EQ(SerializeShard(*read), bytes);
    EXPECT_EQ(Dequantize(*read), Dequantize(linear));
    EXPECT_NE(Dequantize(linear), DequantizeDense(linear));
    // Taken away again, nothing of them stays.
    linear.outliers = {};
    EXPECT_EQ(SerializeShard(linear), without);
    EXPECT_THAT(without, HasSubstr("gradq_shard_version\":\"1\""));
    EXPECT_THAT(bytes, HasSubstr("gradq_shard_version\":\"2\""));
  }
}

TEST_P(QuantizedLinearTest, OutliersRestoreTheWeights) {
  const int64_t out = 7, in = 65536 + 40;
  QuantizedLinear linear = Make(out, in);
  const std::vector<float> dense = DequantizeDense(linear);
  std::vector<float> weights = dense;
  std::vector<uint8_t> apart(dense.size());
  std::mt19937 random(1);
  for (size_t i = 0; i < dense.size(); ++i) {
    weights[i] = static_cast<float>(random() % 4001) / 1000.0f - 2.0f;
    apart[i] = random() % 50 == 0;
  }
  ASSERT_TRUE(SetOutliers(weights, apart, &linear).ok());
  ASSERT_TRUE(Validate(linear).ok()) << Validate(linear);
  EXPECT_EQ(DequantizeDense(linear), dense);
  const std::vector<float> values = Dequantize(linear);
  int64_t count = 0;
  for (size_t i = 0; i < dense.size(); ++i) {
    const float expected =
        apart[i] ? dense[i] + Float16Value(Float16Bits(weights[i] - dense[i])) : dense[i];
    ASSERT_EQ(values[i], expected) << i;
    // Half of fp16's spacing at the difference, and fp32 roundings.
    const float tolerance =
        0x1p-11f * std::abs(weights[i] - dense[i]) + 0x1p-22f * (2 + std::abs(dense[i]));
    if (apart[i]) {
      ASSERT_NEAR(values[i], weights[i], tolerance) << i;
    }
    count += apart[i];
  }
  EXPECT_EQ(static_cast<int64_t>(linear.outliers.col.size()), count);
  EXPECT_EQ(linear.outliers.row_ptr.size(), static_cast<size_t>(2 * out + 1));
  EXPECT_DOUBLE_EQ(linear.outlier_fraction(), static_cast<double>(count) / (out * in));
  QuantizedLinear plain = linear;
  plain.outliers = {};
  EXPECT_DOUBLE_EQ(linear.average_bits(),
                   plain.average_bits() + 32.0 * (count + 2 * out + 1) / (out * in));
  // None apart: none stored.
  ASSERT_TRUE(SetOutliers(weights, std::vector<uint8_t>(dense.size()), &linear).ok());
  EXPECT_TRUE(linear.outliers.row_ptr.empty());
  EXPECT_EQ(linear.outlier_fraction(), 0);
}

TEST(SetOutliers, RefusesADifferenceBeyondFp16) {
  QuantizedLinear linear = RandomLinear("l", Encoding::kLut, 3, 2, 3, 0, 1);
  std::vector<float> weights(6);
  std::vector<uint8_t> apart(6);
  apart[4] = 1;
  weights[4] = 70000;
  EXPECT_THAT(std::string(SetOutliers(weights, apart, &linear).message()),
              ::testing::AllOf(HasSubstr("l: fp16"), HasSubstr("row 1, column 1")));
}

TEST_P(QuantizedLinearTest, DequantizeFollowsTheDefinition) {
  const QuantizedLinear linear = Make(4, 70);
  const std::vector<uint8_t> codes = UnpackCodes(linear.packed, 4, 70, linear.bits);
  const std::vector<float> values = Dequantize(linear);
  for (int64_t row = 0; row < 4; ++row) {
    for (int64_t j = 0; j < 70; ++j) {
      const int code = codes[row * 70 + j];
      const float expected = linear.encoding == Encoding::kLut
                                 ? Float16Value(linear.lut[(row << linear.bits) + code])
                                 : static_cast<float>(code - linear.zero_point[row * 3 + j / 32]) *
                                       Float16Value(linear.scale[row * 3 + j / 32]);
      EXPECT_EQ(values[row * 70 + j], expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedLinearTest, ::testing::ValuesIn([] {
                           std::vector<Case> cases;
                           for (int bits = 1; bits <= 8; ++bits) {
                             cases.push_back({Encoding::kLut, bits});
                             cases.push_back({Encoding::kAffine, bits});
                           }
                           return cases;
                         }()));

TEST(Validate, RefusesWhatAKernelWouldTrust) {
  const auto refused = [](const char* what, Encoding encoding, auto&& spoil) {
    QuantizedLinear linear = RandomLinear("l", encoding, 3, 4, 33, 32, 1);
    spoil(linear);
    EXPECT_EQ(Validate(linear).code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(std::string(Validate(linear).message()), HasSubstr(what));
  };
  const uint16_t infinity = 0x7c00, nan = 0x7e01;
  refused("bits not in 1..8", Encoding::kLut, [](auto& l) { l.bits = 9; });
  refused("bits not in 1..8", Encoding::kLut, [](auto& l) { l.bits = 0; });
  refused("codes have the wrong size", Encoding::kLut, [](auto& l) { l.packed.pop_back(); });
  refused("unused bits", Encoding::kLut, [](auto& l) { l.packed[3] |= 1u << 31; });
  refused("table has the wrong size", Encoding::kLut, [](auto& l) { l.lut.pop_back(); });
  refused("not finite", Encoding::kLut, [&](auto& l) { l.lut[7] = infinity; });
  refused("not finite", Encoding::kLut, [&](auto& l) { l.lut[7] = nan; });
  refused("not ascending", Encoding::kLut, [](auto& l) { std::swap(l.lut[8], l.lut[9]); });
  refused("sizes not in", Encoding::kLut, [](auto& l) { l.in_features = int64_t{1} << 62; });
  refused("sizes not in", Encoding::kLut, [](auto& l) { l.out_features = 0; });
  refused("group size", Encoding::kAffine, [](auto& l) { l.group_size = 0; });
  refused("wrong size", Encoding::kAffine, [](auto& l) { l.scale.pop_back(); });
  refused("scale is not finite", Encoding::kAffine, [&](auto& l) { l.scale[1] = nan; });
  refused("zero point out of range", Encoding::kAffine, [](auto& l) { l.zero_point[2] = 8; });
  const auto refused_outliers = [&](const char* what, auto&& spoil) {
    refused(what, Encoding::kLut, [&](QuantizedLinear& linear) {
      linear.outliers = {.row_ptr = {0, 2, 2, 2, 3}, .col = {4, 32, 7}, .value = {1, 2, 3}};
      ASSERT_TRUE(Validate(linear).ok()) << Validate(linear);
      spoil(linear.outliers);
    });
  };
  refused_outliers("differ in number", [](auto& o) { o.value.pop_back(); });
  refused_outliers("wrong size", [](auto& o) { o.row_ptr.pop_back(); });
  refused_outliers("without outliers", [](auto& o) { o.col = o.value = {}; });
  refused_outliers("from 0 to 3", [](auto& o) { o.row_ptr[0] = 1; });
  refused_outliers("from 0 to 3", [](auto& o) { o.row_ptr[4] = 2; });
  refused_outliers("pointers fall", [](auto& o) { o.row_ptr[2] = 1; });
  refused_outliers("pointers fall", [](auto& o) { o.row_ptr[1] = -1; });
  refused_outliers("pointers fall", [](auto& o) { o.row_ptr[1] = 1000; });
  refused_outliers("column out of range", [](auto& o) { o.col[1] = 33; });
  refused_outliers("don't ascend", [](auto& o) { o.col[0] = 32; });
  refused_outliers("outlier is not finite", [&](auto& o) { o.value[2] = infinity; });
  refused("solve record", Encoding::kLut,
          [](auto& l) { l.record.objective_final = std::numeric_limits<double>::infinity(); });
}

TEST(ParseShard, RefusesDamage) {
  const std::string bytes = SerializeShard(RandomLinear("l", Encoding::kLut, 3, 4, 33, 32, 1));
  EXPECT_FALSE(ParseShard("").ok());
  EXPECT_FALSE(ParseShard(bytes.substr(0, bytes.size() - 1)).ok());
  EXPECT_FALSE(ParseShard(bytes + "x").ok());
  const TensorInfo other{.name = "x", .dtype = DType::kF32, .shape = {1}, .bytes = 4};
  EXPECT_THAT(ParseShard(SafetensorsPrefix({&other, 1}, {}) + "0000").status().message(),
              HasSubstr("not a gradq shard"));
  std::string newer = bytes;
  const size_t at = newer.find("gradq_shard_version\":\"1\"");
  ASSERT_NE(at, std::string::npos);
  newer[at + 22] = '3';
  EXPECT_EQ(ParseShard(newer).status().code(), absl::StatusCode::kUnimplemented);
  newer[at + 22] = '2';
  EXPECT_THAT(std::string(ParseShard(newer).status().message()), HasSubstr("outliers"));
}

TEST(AverageBits, CountsTablesAndPadding) {
  const QuantizedLinear lut = RandomLinear("l", Encoding::kLut, 3, 4, 64, 32, 1);
  EXPECT_DOUBLE_EQ(lut.average_bits(), 3.0 + 8 * 16.0 / 64);
  const QuantizedLinear affine = RandomLinear("l", Encoding::kAffine, 4, 8, 64, 32, 1);
  EXPECT_DOUBLE_EQ(affine.average_bits(), 4.0 + (16.0 + 4.0) / 32);
}

}  // namespace
}  // namespace gradq
