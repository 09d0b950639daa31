// Optimal 1-D k-means against every partition, against scikit-learn, and on rows with ties and
// zeros.

#include "lib/kernels/kmeans1d.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/format/safetensors.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

// Error of the best codeword for each value, in fp64.
double ErrorOf(const std::vector<float>& values, const std::vector<float>& weights,
               const std::vector<double>& centers) {
  double error = 0.0;
  for (size_t j = 0; j < values.size(); ++j) {
    double nearest = std::numeric_limits<double>::infinity();
    for (const double center : centers) {
      nearest = std::min(nearest, (values[j] - center) * (values[j] - center));
    }
    error += weights[j] * nearest;
  }
  return error;
}

// The minimum over all contiguous partitions of the sorted points into at most `levels` parts.
double ExhaustiveError(const std::vector<float>& values, const std::vector<float>& weights,
                       int levels) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  const auto cost = [&](size_t from, size_t to) {
    double weight = 0.0, mean = 0.0, error = 0.0;
    for (size_t i = from; i < to; ++i) {
      weight += weights[order[i]];
      mean += static_cast<double>(weights[order[i]]) * values[order[i]];
    }
    if (weight == 0.0) return 0.0;
    mean /= weight;
    for (size_t i = from; i < to; ++i) {
      error += weights[order[i]] * (values[order[i]] - mean) * (values[order[i]] - mean);
    }
    return error;
  };
  std::vector<double> best(values.size() + 1, std::numeric_limits<double>::infinity());
  best[0] = 0.0;
  for (int q = 0; q < levels; ++q) {
    std::vector<double> next = best;
    for (size_t i = 1; i <= values.size(); ++i) {
      for (size_t j = 0; j < i; ++j) next[i] = std::min(next[i], best[j] + cost(j, i));
    }
    best = next;
  }
  return best.back();
}

TEST(Kmeans1d, FindsTheBestOfAllPartitions) {
  kernels::Kmeans1dWorkspace workspace;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const int64_t n = 1 + static_cast<int64_t>(seed) * 3;
    std::vector<float> values = Pseudorandoms(n, seed), weights = Pseudorandoms(n, seed + 100);
    // Ties and weightless points.
    for (float& value : values) value = static_cast<float>(static_cast<int>(value * 20)) / 8.0f;
    for (float& weight : weights) weight = std::max(0.0f, weight + 0.5f);
    for (const int levels : {1, 2, 3, 4, 8}) {
      std::vector<double> centers(levels);
      const double error = OptimalKmeans1d(values, weights, centers, &workspace);
      const double expected = ExhaustiveError(values, weights, levels);
      EXPECT_NEAR(error, expected, 1e-12) << n << " values, " << levels << " levels";
      EXPECT_NEAR(ErrorOf(values, weights, centers), expected, 1e-12);
      EXPECT_TRUE(std::is_sorted(centers.begin(), centers.end()));
    }
  }
}

TEST(Kmeans1d, LongRowsAgreeWithTheQuadraticSearch) {
  // Beyond the length at which sorting changes its algorithm.
  const std::vector<float> values = Pseudorandoms(700, 5);
  std::vector<float> weights = Pseudorandoms(700, 6);
  for (float& weight : weights) weight *= weight;
  kernels::Kmeans1dWorkspace workspace;
  std::vector<double> centers(8);
  const double error = OptimalKmeans1d(values, weights, centers, &workspace);
  double best = std::numeric_limits<double>::infinity();
  // Any other codebook is no better.
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::vector<double> other = centers;
    const std::vector<float> moves = Pseudorandoms(8, seed);
    for (int q = 0; q < 8; ++q) other[q] += 0.02 * moves[q];
    best = std::min(best, ErrorOf(values, weights, other));
  }
  EXPECT_NEAR(error, ErrorOf(values, weights, centers), 1e-12 * error);
  EXPECT_LT(error, best);
}

TEST(Kmeans1d, FewerValuesThanCodewordsRepeatTheLargest) {
  const std::vector<float> values = {2, -1, 2, -1}, weights = {1, 1, 1, 1};
  std::vector<double> centers(4);
  kernels::Kmeans1dWorkspace workspace;
  EXPECT_EQ(OptimalKmeans1d(values, weights, centers, &workspace), 0.0);
  EXPECT_EQ(centers, (std::vector<double>{-1, 2, 2, 2}));
}

TEST(Kmeans1d, AllWeightsZeroCountsEveryPointOnce) {
  const std::vector<float> values = {0, 1, 10, 11}, zero(4, 0.0f), one(4, 1.0f);
  std::vector<double> from_zero(2), from_one(2);
  kernels::Kmeans1dWorkspace workspace;
  OptimalKmeans1d(values, zero, from_zero, &workspace);
  OptimalKmeans1d(values, one, from_one, &workspace);
  EXPECT_EQ(from_zero, from_one);
  EXPECT_EQ(from_one, (std::vector<double>{0.5, 10.5}));
}

TEST(Kmeans1d, NotAboveScikitLearnWithTenRestarts) {
  const std::string path = std::string(GRADQ_GOLDEN) + "/solvers/kmeans.safetensors";
  auto file = OpenLocalFile(path);
  ASSERT_TRUE(file.ok()) << file.status();
  auto header = ReadSafetensorsHeader(**file, path);
  ASSERT_TRUE(header.ok()) << header.status();
  const auto read = [&](const std::string& name) {
    const PlacedTensor* placed = header->Find(name);
    std::vector<float> values(placed->info.elements());
    EXPECT_TRUE((*file)->Read(placed->offset, std::as_writable_bytes(std::span(values))).ok());
    return values;
  };
  const size_t rows = header->tensors.size() / 3;
  ASSERT_GE(rows, 20u);
  kernels::Kmeans1dWorkspace workspace;
  for (size_t row = 0; row < rows; ++row) {
    const std::string prefix = StrCat(row < 10 ? "0" : "", row, "/");
    const std::vector<float> values = read(prefix + "values"), weights = read(prefix + "weights");
    const std::vector<float> errors = read(prefix + "errors");
    for (int i = 0; i < 3; ++i) {
      std::vector<double> centers(size_t{4} << i);
      const double error = OptimalKmeans1d(values, weights, centers, &workspace);
      EXPECT_LE(error, errors[i] * (1.0 + 1e-6)) << "row " << row << ", " << centers.size();
      EXPECT_NEAR(error, ErrorOf(values, weights, centers), 1e-9 * error);
    }
  }
}

}  // namespace
}  // namespace gradq
