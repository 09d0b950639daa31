#include "tests/simt/instructions.h"

#include <bit>
#include <cmath>

namespace gradq::kernels {
namespace {

uint16_t Low(uint32_t pair) { return static_cast<uint16_t>(pair & 0xffff); }
uint16_t High(uint32_t pair) { return static_cast<uint16_t>(pair >> 16); }
uint32_t Pair(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }

// Without branches, for loops over it, and without subnormal floats, which are slow.
float Widen(uint32_t half) {
  const uint32_t magnitude = half & 0x7fff;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const float subnormal = std::bit_cast<float>((magnitude << 13) + (113u << 23)) - 0x1p-14f;
  const uint32_t finite = magnitude < 0x400 ? std::bit_cast<uint32_t>(subnormal) : normal;
  const uint32_t special = magnitude >= 0x7c00 ? 0x7f800000 : 0;
  return std::bit_cast<float>(finite | special | (half & 0x8000) << 16);
}

}  // namespace

uint32_t PermuteBytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 0xf;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7))) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

uint16_t RoundToHalf(double value) {
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 48 & 0x8000);
  const double magnitude = std::abs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 0x1p16) return sign | 0x7c00;
  // The exponent of the half: 11 significant bits above 2^-14, steps of 2^-24 below.
  int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  if (exponent < -14) exponent = -14;
  const auto steps_in_one =
      std::bit_cast<double>(static_cast<uint64_t>(10 - exponent + 1023) << 52);
  // In steps at most 2048: adding 2^52 rounds to an integer, to even in a tie.
  const double rounded = magnitude * steps_in_one + 0x1p52;
  const auto steps = static_cast<int>(std::bit_cast<uint64_t>(rounded) & 0xfff);
  // A carry out of the significand makes the next exponent, and infinity beyond the last.
  return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + steps));
}

float HalfValue(uint16_t half) { return Widen(half); }

uint32_t SubtractHalves(uint32_t a, uint32_t b) {
  const auto subtract = [](uint16_t x, uint16_t y) {
    return RoundToHalf(static_cast<double>(HalfValue(x)) - static_cast<double>(HalfValue(y)));
  };
  return Pair(subtract(Low(a), Low(b)), subtract(High(a), High(b)));
}

uint32_t MultiplyHalves(uint32_t a, uint32_t b) {
  const auto multiply = [](uint16_t x, uint16_t y) {
    return RoundToHalf(static_cast<double>(HalfValue(x)) * static_cast<double>(HalfValue(y)));
  };
  return Pair(multiply(Low(a), Low(b)), multiply(High(a), High(b)));
}

void MultiplyAccumulate(const MmaLane (&lanes)[32]) {
  uint16_t halves_of_a[16 * 16];  // [row][k]
  uint16_t halves_of_b[16 * 8];   // [k][column]
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4;
    const int member = lane % 4;
    // PTX ISA, "Matrix Fragments for mma.m16n8k16": element i of a lane's fragment.
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = lanes[lane].a[i / 2];
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int k = member * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      halves_of_a[row * 16 + k] = i % 2 == 0 ? Low(word) : High(word);
    }
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = lanes[lane].b[i / 2];
      const int k = member * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      halves_of_b[k * 8 + group] = i % 2 == 0 ? Low(word) : High(word);
    }
  }
  double a[16 * 16];
  double b[16 * 8];
  for (int i = 0; i < 16 * 16; ++i) a[i] = Widen(halves_of_a[i]);
  for (int i = 0; i < 16 * 8; ++i) b[i] = Widen(halves_of_b[i]);
  double c[16][8];
  const auto place = [](int lane, int i) {
    struct Place {
      int row;
      int column;
    };
    return Place{lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)};
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto at = place(lane, i);
      c[at.row][at.column] = lanes[lane].c[i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column)
        c[row][column] += a[row * 16 + k] * b[k * 8 + column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto at = place(lane, i);
      lanes[lane].c[i] = static_cast<float>(c[at.row][at.column]);
    }
  }
}

}  // namespace gradq::kernels
