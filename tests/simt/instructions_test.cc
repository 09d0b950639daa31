#include "tests/simt/instructions.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"
#include "lib/kernels/float16.h"

namespace gradq::kernels {
namespace {

TEST(PermuteBytes, PicksBytesAndReplicatesSigns) {
  // Bytes 0..7 are 10 91 12 93 14 95 16 97.
  const uint32_t low = 0x93129110;
  const uint32_t high = 0x97169514;
  const struct {
    uint32_t selector;
    uint32_t result;
  } cases[] = {
      {0x3210, low},        {0x7654, high},       {0x5140, 0x95911410}, {0x7362, 0x97931612},
      {0x0000, 0x10101010}, {0x7777, 0x97979797}, {0xba98, 0xff00ff00}, {0xfedc, 0xff00ff00},
      {0x8881, 0x00000091}, {0x0991, 0x10ffff91}, {0xabcd3210, low},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(PermuteBytes(low, high, c.selector), c.result) << std::hex << c.selector;
  }
}

double MagnitudeOf(int half) {
  const int exponent = half >> 10 & 0x1f;
  const int fraction = half & 0x3ff;
  if (exponent == 0) return std::ldexp(fraction, -24);
  return std::ldexp(1024 + fraction, exponent - 25);
}

TEST(Half, EveryValueIsTheDefinition) {
  for (int half = 0; half < 0x7c00; ++half) {
    ASSERT_EQ(HalfValue(static_cast<uint16_t>(half)), MagnitudeOf(half)) << half;
    ASSERT_EQ(HalfValue(static_cast<uint16_t>(half | 0x8000)), -MagnitudeOf(half)) << half;
  }
  for (int half = 0; half < 0x10000; ++half) {
    const float value = HalfValue(static_cast<uint16_t>(half));
    const float library = Float16ToFloat(static_cast<uint16_t>(half));
    ASSERT_EQ(std::isnan(value), std::isnan(library)) << half;
    ASSERT_EQ(std::signbit(value), std::signbit(library)) << half;
    if (!std::isnan(value)) {
      ASSERT_EQ(value, library) << half;
    }
    const uint16_t back = RoundToHalf(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(HalfValue(back))) << half;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  for (int half = 0; half < 0x7c00; ++half) {
    const double below = MagnitudeOf(half);
    const double above = half == 0x7bff ? 65536 : MagnitudeOf(half + 1);
    const double middle = (below + above) / 2;
    const int even = half % 2 == 0 ? half : half + 1;
    ASSERT_EQ(RoundToHalf(middle), even) << half;
    ASSERT_EQ(RoundToHalf(-middle), even | 0x8000) << half;
    ASSERT_EQ(RoundToHalf(std::nextafter(middle, 0)), half) << half;
    ASSERT_EQ(RoundToHalf(std::nextafter(middle, 1e9)), half + 1) << half;
  }
  EXPECT_EQ(RoundToHalf(65519.9), 0x7bff);
  EXPECT_EQ(RoundToHalf(65520), 0x7c00);
  EXPECT_EQ(RoundToHalf(1e300), 0x7c00);
  EXPECT_EQ(RoundToHalf(-std::numeric_limits<double>::infinity()), 0xfc00);
  EXPECT_EQ(RoundToHalf(5e-324), 0);
  EXPECT_EQ(RoundToHalf(-0.0), 0x8000);
}

TEST(Half, PairsAreRoundedOnce) {
  const auto pair = [](double low, double high) {
    return RoundToHalf(low) | static_cast<uint32_t>(RoundToHalf(high)) << 16;
  };
  EXPECT_EQ(SubtractHalves(pair(1024 + 13, 1), pair(1024 + 8, 1)), pair(5, 0));
  // 1 - 2^-12 lies halfway between two halves, 1 - 3·2^-13 above the middle of the next two.
  EXPECT_EQ(SubtractHalves(pair(1, 1), pair(0x1p-12, 0x3p-13)), pair(1, 1 - 0x1p-11));
  EXPECT_EQ(SubtractHalves(pair(65504, -65504), pair(-16, 16)), 0xfc007c00);
  EXPECT_EQ(MultiplyHalves(pair(3, 0x1p-14), pair(-0.5, 0x1p-11)), pair(-1.5, 0));
  // (1 + 2^-10)² = 1 + 2^-9 + 2^-20.
  EXPECT_EQ(MultiplyHalves(pair(1 + 0x1p-10, 300), pair(1 + 0x1p-10, 300)),
            pair(1 + 0x1p-9, std::numeric_limits<double>::infinity()));
}

// A warp's registers of given matrices: where an element of A, B or C lies, the inverse of the
// manual's tables.
struct WarpRegisters {
  float c[32][4] = {};
  uint32_t a[32][4] = {};
  uint32_t b[32][2] = {};

  void SetA(int row, int k, double value) {
    Put(&a[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k % 2, value);
  }
  void SetB(int k, int column, double value) {
    Put(&b[column * 4 + k % 8 / 2][k / 8], k % 2, value);
  }
  float* C(int row, int column) { return &c[row % 8 * 4 + column / 2][row / 8 * 2 + column % 2]; }
  void Multiply() {
    MmaLane lanes[32];
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = {c[lane], a[lane], b[lane]};
    MultiplyAccumulate(lanes);
  }

 private:
  static void Put(uint32_t* word, int half, double value) {
    *word |= static_cast<uint32_t>(RoundToHalf(value)) << (16 * half);
  }
};

TEST(Mma, IsTheProductOfTheMatrices) {
  WarpRegisters registers;
  double a[16][16];
  double b[16][8];
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) registers.SetA(row, k, a[row][k] = 1 + row * 16 + k);
  }
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < 8; ++column) {
      registers.SetB(k, column, b[k][column] = 700 - (k * 8 + column));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) *registers.C(row, column) = row * 1000 + column;
  }
  registers.Multiply();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double expected = row * 1000 + column;
      for (int k = 0; k < 16; ++k) expected += a[row][k] * b[k][column];
      EXPECT_EQ(*registers.C(row, column), expected) << row << ", " << column;
    }
  }
}

TEST(Mma, RoundsItsSumOnce) {
  WarpRegisters registers;
  *registers.C(0, 0) = 0x1p24f;
  for (int k = 0; k < 16; ++k) {
    registers.SetA(0, k, 1);
    registers.SetB(k, 0, k < 3 ? 1 : 0);
  }
  registers.Multiply();
  // One by one the ones would get lost, a tie to even each.
  EXPECT_EQ(*registers.C(0, 0), 0x1p24f + 4);
}

}  // namespace
}  // namespace gradq::kernels
