// Codebooks on integer grids: the fit of one row, and whole linears against the codebooks they came
// from.

#include "lib/solvers/grid_snap.h"

#include <cmath>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/solvers/quantizer.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

std::vector<double> Identity(size_t n) {
  std::vector<double> gram(n * n);
  for (size_t q = 0; q < n; ++q) gram[q * (n + 1)] = 1;
  return gram;
}

TEST(FitRowGrid, FindsTheGridThatCodewordsLieOn) {
  const double scale = 0.0625;
  const std::vector<double> table = {-7 * scale, -2 * scale, scale, 8 * scale};
  std::vector<uint8_t> codes(4);
  const RowGrid grid = FitRowGrid(table, table, Identity(4), std::vector<double>(4), 4, codes);
  for (size_t q = 0; q < 4; ++q)
    EXPECT_EQ((codes[q] - grid.zero) * Float16Value(grid.scale), table[q]);
  EXPECT_EQ(grid.cost, 0);
}

TEST(FitRowGrid, CostIsThatOfTheMoveAndNotAboveRounding) {
  const size_t n = 8;
  const std::vector<float> noise = Pseudorandoms(200, 5);
  std::vector<double> table, slope, gram(n * n);
  for (size_t q = 0; q < n; ++q) {
    table.push_back(0.3 * static_cast<double>(q) - 0.9 + 0.1 * noise[q]);
    slope.push_back(0.01 * noise[50 + q]);
  }
  for (size_t q = 0; q < n; ++q) {
    for (size_t p = 0; p < n; ++p) {
      for (size_t k = 0; k < 12; ++k)
        gram[q * n + p] += noise[60 + q * 12 + k] * noise[60 + p * 12 + k];
    }
  }
  const auto cost = [&](const std::vector<double>& moved) {
    double sum = 0;
    for (size_t q = 0; q < n; ++q) {
      sum += 2 * slope[q] * (moved[q] - table[q]);
      for (size_t p = 0; p < n; ++p)
        sum += (moved[q] - table[q]) * gram[q * n + p] * (moved[p] - table[p]);
    }
    return sum;
  };
  std::vector<uint8_t> codes(n);
  const RowGrid grid = FitRowGrid(table, table, gram, slope, 4, codes);
  std::vector<double> moved(n), rounded(n);
  const double plain = (table.back() - table.front()) / 15;
  for (size_t q = 0; q < n; ++q) {
    moved[q] = (codes[q] - grid.zero) * static_cast<double>(Float16Value(grid.scale));
    rounded[q] = std::nearbyint(table[q] / plain) * plain;
    EXPECT_TRUE(q == 0 || codes[q - 1] < codes[q]);
  }
  EXPECT_NEAR(grid.cost, cost(moved), 1e-12);
  EXPECT_LT(grid.cost, cost(rounded));
}

TEST(FitRowGrid, AsManyCodewordsAsPoints) {
  std::vector<double> table;
  for (int q = 0; q < 16; ++q) table.push_back(0.01 * q * q);
  std::vector<uint8_t> codes(16);
  FitRowGrid(table, table, Identity(16), std::vector<double>(16), 4, codes);
  for (int q = 0; q < 16; ++q) EXPECT_EQ(codes[q], q);
}

struct Case {
  const char* method;
  Objective objective;
  int bits;
  const char* grid_bits;
  bool apart = false;
};
class SnapTest : public testing::TestWithParam<Case> {};

TEST_P(SnapTest, StaysNearTheCodebook) {
  const Case& c = GetParam();
  LayerProblem problem = MakeProblem({.name = "l",
                                      .rows = 70,
                                      .columns = 96,
                                      .groups = 2,
                                      .tokens = 300,
                                      .zero_row = true,
                                      .dead_input = true},
                                     c.bits);
  problem.objective = c.objective;
  if (c.apart) {
    problem.apart.assign(70 * 96, 0);
    for (size_t i = 100; i < problem.apart.size(); i += 37) problem.apart[i] = 1;
  }
  if (std::string(c.method) == "squeezellm") problem.fisher_blocks.clear();
  ThreadPool one(1), three(3);
  const auto free = SolveLayer(c.method, problem, {&three, nullptr});
  problem.options = {{"grid_bits", c.grid_bits}};
  const auto snapped = SolveLayer(c.method, problem, {&three, nullptr});
  ASSERT_TRUE(free.ok() && snapped.ok()) << free.status() << snapped.status();
  EXPECT_EQ(SerializeShard(*SolveLayer(c.method, problem, {&one, nullptr})),
            SerializeShard(*snapped));
  EXPECT_EQ(snapped->encoding, Encoding::kAffine);
  EXPECT_EQ(snapped->bits, std::atoi(c.grid_bits));
  EXPECT_EQ(snapped->group_size, 96);
  EXPECT_EQ(snapped->record.numbers.at("codebook_bits"), c.bits);
  // No row has more values than its codebook.
  const std::vector<float> values = DequantizeDense(*snapped);
  for (int64_t r = 0; r < 70; ++r) {
    const std::set<float> distinct(values.begin() + r * 96, values.begin() + (r + 1) * 96);
    EXPECT_LE(distinct.size(), size_t{1} << c.bits);
  }
  // The whole error, measured outside the solver.
  const auto error = [&](const QuantizedLinear& linear) {
    const std::vector<float> quantized = Dequantize(linear);
    const float* weight = problem.weight.const_data_ptr<float>();
    double sum = 0;
    for (int64_t r = 0; r < 70; ++r) {
      if (!problem.fisher_blocks.empty() || c.objective == Objective::kPlain) {
        const at::Tensor& h = c.objective == Objective::kPlain
                                  ? problem.gram
                                  : problem.fisher_blocks[r < problem.groups.begin(1) ? 0 : 1];
        sum += PlainForm(h.const_data_ptr<float>(), 96, quantized.data() + r * 96, weight + r * 96);
        continue;
      }
      const float* fisher = problem.fisher_diagonal.const_data_ptr<float>() + r * 96;
      for (int64_t j = 0; j < 96; ++j) {
        const double difference = double{quantized[r * 96 + j]} - weight[r * 96 + j];
        sum += fisher[j] * difference * difference;
      }
    }
    return sum;
  };
  const double before = error(*free), after = error(*snapped);
  // Four codewords on 16 points have little room; 256 points are almost free.
  EXPECT_LT(after, before * (std::string(c.grid_bits) == "8" ? 1.02 : 1.25)) << before;
  EXPECT_GT(after, before * 0.8);
  if (snapped->record.objective_final && c.objective == Objective::kPlain) {
    EXPECT_NEAR(*snapped->record.objective_final,
                PlainObjective(problem, {problem.gram, problem.gram}, *snapped),
                1e-4 * *snapped->record.objective_final);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SnapTest,
                         testing::Values(Case{"lnq", Objective::kGuided, 2, "4"},
                                         Case{"lnq", Objective::kGuided, 3, "8"},
                                         Case{"lnq", Objective::kPlain, 2, "8"},
                                         Case{"lnq", Objective::kGuided, 4, "8"},
                                         Case{"lnq", Objective::kGuided, 2, "4", true},
                                         Case{"squeezellm", Objective::kGuided, 2, "4"},
                                         Case{"squeezellm", Objective::kGuided, 3, "8", true}));

TEST(SnapToGrid, RefusesMoreCodewordsThanPoints) {
  LayerProblem problem = MakeProblem({.name = "l", .rows = 4, .columns = 40, .tokens = 50}, 5);
  problem.options = {{"grid_bits", "4"}};
  ThreadPool pool(1);
  EXPECT_THAT(std::string(SolveLayer("lnq", problem, {&pool, nullptr}).status().message()),
              HasSubstr("grid_bits 4, bits 5"));
}

}  // namespace
}  // namespace gradq
