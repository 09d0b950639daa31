#pragma once

// Optimal weighted k-means of one row's weights by dynamic programming. Called by the solvers, one
// row per task; the workspace is reused by one thread at a time. Reference: reproducible without a
// seed, error never above that of Lloyd's algorithm from any start.

#include <cstdint>
#include <span>
#include <vector>

namespace gradq::kernels {

// Scratch memory that grows to the largest row seen.
struct Kmeans1dWorkspace {
  std::vector<uint64_t> keys, keys_swap;
  std::vector<double> point, weight, sum_weight, sum_first, sum_second;
  std::vector<double> previous, current;
  std::vector<int32_t> split;
};

// min over codewords c and assignments of Σ_j weights[j] · (c_{a(j)} − values[j])². Writes
// centers.size() codewords in ascending order and returns the minimum, both in fp64. Weights must
// be finite and ≥ 0; when all are 0, every point counts 1. Points of weight 0 don't take part
// otherwise. Codewords beyond the number of distinct values repeat the largest.
double OptimalKmeans1d(std::span<const float> values, std::span<const float> weights,
                       std::span<double> centers, Kmeans1dWorkspace* workspace);

}  // namespace gradq::kernels
