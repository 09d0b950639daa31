#include "lib/format/packing.h"

#include <bit>

#include "lib/base/status_macros.h"

namespace gradq {

void PackRow(std::span<const uint8_t> codes, int bits, std::span<uint32_t> row) {
  uint64_t window = 0;  // bits not yet stored, the oldest lowest
  int filled = 0;
  size_t word = 0;
  for (const uint8_t code : codes) {
    window |= static_cast<uint64_t>(code) << filled;
    filled += bits;
    if (filled >= 32) {
      row[word++] = static_cast<uint32_t>(window);
      window >>= 32;
      filled -= 32;
    }
  }
  if (filled > 0) row[word] = static_cast<uint32_t>(window);
}

std::vector<uint32_t> PackCodes(std::span<const uint8_t> codes, int64_t out_features,
                                int64_t in_features, int bits) {
  GRADQ_CHECK(static_cast<int64_t>(codes.size()) == out_features * in_features);
  const int64_t words = PackedWords(in_features, bits);
  std::vector<uint32_t> packed(static_cast<size_t>(out_features * words));
  for (int64_t row = 0; row < out_features; ++row) {
    PackRow(codes.subspan(row * in_features, in_features), bits,
            std::span(packed).subspan(row * words, words));
  }
  return packed;
}

void UnpackRow(std::span<const uint32_t> row, int bits, std::span<uint8_t> codes) {
  const uint32_t mask = (1u << bits) - 1;
  uint64_t window = 0;
  int filled = 0;
  size_t word = 0;
  for (uint8_t& code : codes) {
    if (filled < bits) {
      window |= static_cast<uint64_t>(row[word++]) << filled;
      filled += 32;
    }
    code = static_cast<uint8_t>(window & mask);
    window >>= bits;
    filled -= bits;
  }
}

std::vector<uint8_t> UnpackCodes(std::span<const uint32_t> packed, int64_t out_features,
                                 int64_t in_features, int bits) {
  const int64_t words = PackedWords(in_features, bits);
  GRADQ_CHECK(static_cast<int64_t>(packed.size()) == out_features * words);
  std::vector<uint8_t> codes(static_cast<size_t>(out_features * in_features));
  for (int64_t row = 0; row < out_features; ++row) {
    UnpackRow(packed.subspan(row * words, words), bits,
              std::span(codes).subspan(row * in_features, in_features));
  }
  return codes;
}

uint16_t Float16Bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));  // NaN, made quiet
  if (magnitude >= 0x477ff000u)
    return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 leaves the value in units of 2^-24 in the
    // mantissa, rounded by the FPU to even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

float Float16Value(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

uint16_t BFloat16Bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float BFloat16Value(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace gradq
