#pragma once

// Quantized linears with random content for tests of the format: valid, and different for every
// seed.

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "lib/format/packing.h"
#include "lib/format/quantized_linear.h"

namespace gradq {

inline QuantizedLinear RandomLinear(std::string name, Encoding encoding, int bits, int64_t out,
                                    int64_t in, int64_t group_size, uint32_t seed) {
  std::mt19937 random(seed);
  const auto uniform = [&] { return static_cast<float>(random()) / 4294967296.0f - 0.5f; };
  QuantizedLinear linear;
  linear.name = std::move(name);
  linear.encoding = encoding;
  linear.bits = bits;
  linear.out_features = out;
  linear.in_features = in;
  std::vector<uint8_t> codes(static_cast<size_t>(out * in));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  linear.packed = PackCodes(codes, out, in, bits);
  if (encoding == Encoding::kLut) {
    for (int64_t row = 0; row < out; ++row) {
      std::vector<float> table(size_t{1} << bits);
      for (float& value : table) value = uniform();
      std::sort(table.begin(), table.end());
      for (const float value : table) linear.lut.push_back(Float16Bits(value));
    }
  } else {
    linear.group_size = group_size;
    for (int64_t i = 0; i < out * ((in + group_size - 1) / group_size); ++i) {
      linear.scale.push_back(Float16Bits(uniform() + 0.6f));
      linear.zero_point.push_back(static_cast<uint8_t>(random() & ((1u << bits) - 1)));
    }
  }
  linear.record.method = encoding == Encoding::kLut ? "lnq" : "rtn";
  if (encoding == Encoding::kLut) {
    linear.record.objective_initial = 1.5 + uniform();
    linear.record.objective_final = 0.1 + 0.3 * (uniform() + 0.5f);
    linear.record.predicted_loss_increase = 1e-3 / 3;
    linear.record.damping = {1e-5, 0.1};
    linear.record.numbers = {{"iterations_used", 3}};
  }
  return linear;
}

// Keeps about one weight in `one_in` of a random linear apart, at least one; some rows have none.
inline void AddRandomOutliers(QuantizedLinear* linear, uint32_t one_in, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> weights = DequantizeDense(*linear);
  std::vector<uint8_t> apart(weights.size());
  apart[random() % apart.size()] = 1;
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] += static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 500.0f;
    if (random() % one_in == 0 && (i / linear->in_features) % 3 != 1) apart[i] = 1;
  }
  if (!SetOutliers(weights, apart, linear).ok()) std::abort();
}

}  // namespace gradq
