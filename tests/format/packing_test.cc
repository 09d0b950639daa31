#include "lib/format/packing.h"

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace gradq {
namespace {

// The definition: bit i of element j is bit j*b + i of the row.
std::vector<uint32_t> PackByDefinition(std::span<const uint8_t> codes, int64_t out, int64_t in,
                                       int bits) {
  std::vector<uint32_t> packed(out * PackedWords(in, bits));
  for (int64_t row = 0; row < out; ++row) {
    for (int64_t j = 0; j < in; ++j) {
      for (int i = 0; i < bits; ++i) {
        const int64_t at = j * bits + i;
        packed[row * PackedWords(in, bits) + at / 32] |=
            static_cast<uint32_t>((codes[row * in + j] >> i) & 1) << (at % 32);
      }
    }
  }
  return packed;
}

class Packing : public ::testing::TestWithParam<int> {};

TEST_P(Packing, ExactForOddSizes) {
  const int bits = GetParam();
  std::mt19937 random(bits);
  for (const int64_t in : {1, 31, 33, 64, 688}) {
    for (const int64_t out : {1, 3}) {
      std::vector<uint8_t> codes(out * in);
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
      const std::vector<uint32_t> packed = PackCodes(codes, out, in, bits);
      EXPECT_EQ(packed, PackByDefinition(codes, out, in, bits));
      EXPECT_EQ(UnpackCodes(packed, out, in, bits), codes);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, Packing, ::testing::Range(1, 9));

TEST(Packing, NoRows) { EXPECT_TRUE(PackCodes({}, 0, 5, 3).empty()); }

TEST(Float16, EveryHalfReadsAsTheCompilerReadsIt) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float expected = static_cast<float>(std::bit_cast<_Float16>(half));
    const float value = Float16Value(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(Float16Value(Float16Bits(value)))) << bits;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(expected)) << bits;
      EXPECT_EQ(Float16Bits(value), half) << bits;
    }
  }
}

TEST(Float16, RoundsAsTheCompilerDoesAroundEveryHalf) {
  const auto check = [](float value) {
    EXPECT_EQ(Float16Bits(value), std::bit_cast<uint16_t>(static_cast<_Float16>(value))) << value;
  };
  for (uint32_t bits = 0; bits < 0x7c00u; ++bits) {
    const float low = Float16Value(static_cast<uint16_t>(bits));
    const float high = bits == 0x7bffu ? 65536.0f : Float16Value(static_cast<uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact in fp32: the tie
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float value :
         {low, middle, std::nextafter(middle, -infinity), std::nextafter(middle, infinity)}) {
      check(value);
      check(-value);
    }
  }
  for (const float value : {65519.99f, 65520.0f, 1e10f, 1e-10f, 0x1p-25f, 0x1.000002p-25f,
                            0x1p-149f, std::numeric_limits<float>::infinity()}) {
    check(value);
    check(-value);
  }
}

}  // namespace
}  // namespace gradq
