#pragma once

// What tests of decoding share: tokens to decode, and how far logits are from others.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace gradq {

// The same `count` ids below `vocabulary` every time.
inline std::vector<int32_t> Tokens(int64_t count, int64_t vocabulary) {
  std::vector<int32_t> tokens(count);
  uint32_t seed = 1;
  for (int32_t& token : tokens) {
    seed = seed * 1664525u + 1013904223u;
    token = static_cast<int32_t>((seed >> 8) % vocabulary);
  }
  return tokens;
}

// max |a - b| / max |b|; infinite where one of them is not finite.
inline double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double distance = 0, scale = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
      return std::numeric_limits<double>::infinity();
    }
    distance = std::max(distance, std::abs(double{a[i]} - b[i]));
    scale = std::max(scale, std::abs(double{b[i]}));
  }
  return distance / scale;
}

}  // namespace gradq
