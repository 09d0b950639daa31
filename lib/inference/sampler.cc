#include "lib/inference/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

// SplitMix64 of a counter: uniform in [0, 1).
double Uniform(uint64_t seed, uint64_t step) {
  uint64_t z = seed + (step + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace

int32_t SampleToken(std::span<const float> logits, const Sampling& sampling, uint64_t step) {
  GRADQ_CHECK(!logits.empty());
  const auto top = std::max_element(logits.begin(), logits.end());
  if (sampling.temperature <= 0) return static_cast<int32_t>(top - logits.begin());

  std::vector<double> weights(logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = std::exp((double{logits[i]} - double{*top}) / sampling.temperature);
    total += weights[i];
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
  size_t kept = 0;
  double mass = 0;
  while (kept < order.size() && (kept == 0 || mass < sampling.top_p * total)) {
    mass += weights[order[kept++]];
  }
  double left = Uniform(sampling.seed, step) * mass;
  for (size_t i = 0; i + 1 < kept; ++i) {
    left -= weights[order[i]];
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

}  // namespace gradq
