#pragma once

// Bit packing of codes: element j of a row at bit j*b of its row, little end first; rows start on a
// 32-bit word; unused bits 0.

#include <cstdint>
#include <span>
#include <vector>

namespace gradq {

inline int64_t PackedWords(int64_t in_features, int bits) { return (in_features * bits + 31) / 32; }

// `codes`: [out, in], each < 2^bits. Result [out, PackedWords(in, bits)].
std::vector<uint32_t> PackCodes(std::span<const uint8_t> codes, int64_t out_features,
                                int64_t in_features, int bits);
// One row: `row` holds PackedWords(codes.size(), bits) words, zero on entry.
void PackRow(std::span<const uint8_t> codes, int bits, std::span<uint32_t> row);
void UnpackRow(std::span<const uint32_t> row, int bits, std::span<uint8_t> codes);
std::vector<uint8_t> UnpackCodes(std::span<const uint32_t> packed, int64_t out_features,
                                 int64_t in_features, int bits);

// IEEE half, round to nearest even; finite values beyond 65504 become Inf.
uint16_t Float16Bits(float value);
float Float16Value(uint16_t bits);
// To nearest even; a value beyond the range becomes Inf. Not for NaN.
uint16_t BFloat16Bits(float value);
float BFloat16Value(uint16_t bits);

}  // namespace gradq
