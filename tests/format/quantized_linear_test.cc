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
  newer[at + 22] = '2';
  EXPECT_EQ(ParseShard(newer).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(AverageBits, CountsTablesAndPadding) {
  const QuantizedLinear lut = RandomLinear("l", Encoding::kLut, 3, 4, 64, 32, 1);
  EXPECT_DOUBLE_EQ(lut.average_bits(), 3.0 + 8 * 16.0 / 64);
  const QuantizedLinear affine = RandomLinear("l", Encoding::kAffine, 4, 8, 64, 32, 1);
  EXPECT_DOUBLE_EQ(affine.average_bits(), 4.0 + (16.0 + 4.0) / 32);
}

}  // namespace
}  // namespace gradq
