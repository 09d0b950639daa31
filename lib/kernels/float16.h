#pragma once

// IEEE half to float for plain loops; vector code uses the machine's conversion, which gives the
// same values.

#include <bit>
#include <cstdint>

namespace gradq::kernels {

inline float Float16ToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00)
    return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Multiplying by 2^112 rebiases the exponent and makes subnormals normal, exactly.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

}  // namespace gradq::kernels
