// The coupled descent against plain loops in fp64: its kernels, a sweep of the wavefront, the
// objective it reports; and what a caller may rely on.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/kernels/coupled_tile.h"
#include "lib/solvers/coupled_descent.h"
#include "lib/solvers/quantizer.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

using kernels::kCoupledTile;

// Channels that go together in pairs and all a little.
LayerProblem MakeCoupledProblem(const ProblemShape& shape, int bits) {
  LayerProblem problem = MakeProblem(shape, bits);
  problem.objective = Objective::kCoupled;
  const int64_t tokens = 3 * shape.rows;
  std::vector<float> dz = Pseudorandoms(tokens * shape.rows, 21);
  for (int64_t t = 0; t < tokens; ++t) {
    float* row = dz.data() + t * shape.rows;
    for (int64_t j = 1; j < shape.rows; ++j) row[j] += 0.6f * row[j - 1];
  }
  std::vector<float> output(shape.rows * shape.rows);
  for (int64_t i = 0; i < shape.rows; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t)
        sum += static_cast<double>(dz[t * shape.rows + i]) * dz[t * shape.rows + j];
      output[i * shape.rows + j] = output[j * shape.rows + i] = static_cast<float>(sum);
    }
  }
  problem.output_fisher = MakeTensor(output, shape.rows, shape.rows);
  return problem;
}

// E_a and half its gradient, element by element from the model.
struct PlainObjective64 {
  const CoupledModel& model;
  double shrinkage;

  double Output(int64_t j, int64_t p) const {
    return (j == p ? 1.0 : 1.0 - shrinkage) * model.output[j * model.rows + p];
  }
  double Gradient(const std::vector<double>& error, int64_t row, int64_t column) const {
    const int64_t columns = model.columns;
    double sum = 0;
    for (int64_t p = 0; p < model.rows; ++p) {
      double product = 0;
      for (int64_t i = 0; i < columns; ++i)
        product += error[p * columns + i] * model.shared[i * columns + column];
      sum += Output(row, p) * product;
    }
    if (model.own.empty()) return sum;
    const std::vector<float>& own = model.own[model.groups.group_of(row)];
    double product = 0;
    for (int64_t i = 0; i < columns; ++i)
      product += error[row * columns + i] * own[i * columns + column];
    return sum + shrinkage * Output(row, row) * product;
  }
  double Curvature(int64_t row, int64_t column) const {
    const int64_t at = column * model.columns + column;
    double matrix = model.shared[at];
    if (!model.own.empty()) matrix += shrinkage * model.own[model.groups.group_of(row)][at];
    return Output(row, row) * matrix;
  }
  double Value(const std::vector<double>& error) const {
    double sum = 0;
    for (int64_t row = 0; row < model.rows; ++row) {
      for (int64_t i = 0; i < model.columns; ++i)
        sum += Gradient(error, row, i) * error[row * model.columns + i];
    }
    return sum;
  }
};

struct Start {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> table;
};

Start UncoupledStart(const LayerProblem& problem, ThreadPool* pool) {
  LayerProblem guided = problem;
  guided.objective = Objective::kGuided;
  const auto linear = SolveLayer("lnq", guided, {pool, {}});
  EXPECT_TRUE(linear.ok()) << linear.status();
  return {UnpackCodes(linear->packed, linear->out_features, linear->in_features, linear->bits),
          linear->lut};
}

std::vector<double> Errors(const LayerProblem& problem, std::span<const uint8_t> codes,
                           std::span<const uint16_t> table) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  const int64_t levels = static_cast<int64_t>(table.size()) / rows;
  const float* weight = problem.weight.const_data_ptr<float>();
  std::vector<double> error(rows * columns);
  for (int64_t at = 0; at < rows * columns; ++at) {
    if (!problem.apart.empty() && problem.apart[at] != 0) continue;
    const float value = Float16Value(table[at / columns * levels + codes[at]]);
    error[at] = static_cast<double>(value) - weight[at];
  }
  return error;
}

// A sweep as the header says it: diagonals of tiles one after the other, tiles of one diagonal from
// the same errors, in a tile columns outer and rows inner. With a single tile it is plain
// sequential coordinate descent.
std::vector<double> SweepOracle(const LayerProblem& problem, const PlainObjective64& objective,
                                const Start& start) {
  const int64_t rows = objective.model.rows, columns = objective.model.columns;
  const int64_t levels = static_cast<int64_t>(start.table.size()) / rows;
  const float* weight = problem.weight.const_data_ptr<float>();
  std::vector<double> error = Errors(problem, start.codes, start.table);
  const int64_t down = (rows + kCoupledTile - 1) / kCoupledTile;
  const int64_t across = (columns + kCoupledTile - 1) / kCoupledTile;
  for (int64_t diagonal = 0; diagonal < down + across - 1; ++diagonal) {
    const std::vector<double> before = error;
    for (int64_t tile = 0; tile < down; ++tile) {
      if (diagonal - tile < 0 || diagonal - tile >= across) continue;
      std::vector<double> seen = before;
      const int64_t column = (diagonal - tile) * kCoupledTile, row = tile * kCoupledTile;
      for (int64_t i = column; i < std::min(column + kCoupledTile, columns); ++i) {
        for (int64_t j = row; j < std::min(row + kCoupledTile, rows); ++j) {
          const int64_t at = j * columns + i;
          const double curvature = objective.Curvature(j, i);
          if (!(curvature > 0) || (!problem.apart.empty() && problem.apart[at] != 0)) continue;
          const double target = weight[at] + seen[at] - objective.Gradient(seen, j, i) / curvature;
          double nearest = 0, distance = INFINITY;
          for (int64_t q = 0; q < levels; ++q) {
            const double value = Float16Value(start.table[j * levels + q]);
            if (std::fabs(value - target) >= distance) continue;
            distance = std::fabs(value - target);
            nearest = value;
          }
          seen[at] = error[at] = nearest - weight[at];
        }
      }
    }
  }
  return error;
}

std::vector<ProblemShape> Shapes() {
  return {{.name = "one tile", .rows = 20, .columns = 30, .tokens = 80},
          {.name = "tiles", .rows = 70, .columns = 75, .tokens = 200},
          {.name = "groups", .rows = 45, .columns = 40, .groups = 3, .tokens = 100},
          {.name = "one column", .rows = 40, .columns = 1, .tokens = 50},
          {.name = "dead input", .rows = 33, .columns = 12, .tokens = 50, .dead_input = true},
          {.name = "singular", .rows = 12, .columns = 64, .groups = 2, .tokens = 20}};
}

void SetApart(LayerProblem* problem) {
  problem->apart.assign(problem->weight.numel(), 0);
  for (size_t i = 3; i < problem->apart.size(); i += 17) problem->apart[i] = 1;
}

TEST(CoupledTileTest, ProductsHaveTheBitsOfPlainLoops) {
  for (const auto& [rows, depth, width] :
       {std::array{1, 1, 1}, std::array{13, 7, 33}, std::array{32, 50, 64}, std::array{5, 9, 17}}) {
    for (const bool accumulate : {false, true}) {
      const std::vector<float> a = Pseudorandoms(rows * (depth + 2), 1);
      const std::vector<float> b = Pseudorandoms(depth * (width + 3), 2);
      std::vector<float> c = Pseudorandoms(rows * (width + 1), 3), expected = c;
      kernels::MultiplyAdd(a.data(), depth + 2, b.data(), width + 3, rows, depth, width, accumulate,
                           c.data(), width + 1);
      kernels::reference::MultiplyAdd(a.data(), depth + 2, b.data(), width + 3, rows, depth, width,
                                      accumulate, expected.data(), width + 1);
      EXPECT_EQ(c, expected) << rows << " x " << depth << " x " << width;
    }
  }
}

TEST(CoupledTileTest, DescentHasTheBitsOfPlainLoops) {
  for (const auto& [rows, columns] : {std::array{32, 32}, std::array{7, 19}, std::array{1, 32}}) {
    const int64_t stride = columns + 5;
    const std::vector<float> weight = Pseudorandoms(rows * stride, 4);
    std::vector<float> table = Pseudorandoms(rows * 8, 5);
    for (int r = 0; r < rows; ++r) std::sort(table.begin() + r * 8, table.begin() + r * 8 + 8);
    std::vector<uint8_t> apart(rows * stride);
    for (size_t i = 0; i < apart.size(); i += 11) apart[i] = 1;
    std::vector<float> output = Pseudorandoms(rows * rows, 6);
    std::vector<float> shared = Pseudorandoms(columns * columns, 7), other = shared;
    for (int i = 0; i < rows; ++i) output[i * rows + i] = i == 3 ? 0.0f : 4.0f;
    for (int i = 0; i < columns; ++i) shared[i * columns + i] = 3.0f;
    const std::vector<const float*> own(rows, other.data());
    std::vector<float> results[2];
    std::vector<uint8_t> result_codes[2];
    int64_t changes[2];
    for (const bool plain : {false, true}) {
      std::vector<float> error = Pseudorandoms(rows * stride, 8);
      std::vector<float> gradient = Pseudorandoms(rows * kCoupledTile, 9);
      std::vector<float> moved(rows * kCoupledTile);
      std::vector<uint8_t> codes(rows * stride);
      kernels::CoupledTile tile;
      tile.rows = rows;
      tile.columns = columns;
      tile.weight = weight.data();
      tile.error = error.data();
      tile.codes = codes.data();
      tile.apart = apart.data();
      tile.stride = stride;
      tile.table = table.data();
      tile.levels = 8;
      tile.gradient = gradient.data();
      tile.output = output.data();
      tile.output_stride = rows;
      tile.coupling = 0.4f;
      tile.shared = shared.data();
      tile.shared_stride = columns;
      tile.own = own.data();
      tile.own_factor = 0.6f;
      tile.moved = moved.data();
      changes[plain] = plain ? kernels::reference::DescendTile(tile) : kernels::DescendTile(tile);
      results[plain] = error;
      results[plain].insert(results[plain].end(), moved.begin(), moved.end());
      result_codes[plain] = codes;
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(result_codes[0], result_codes[1]);
    EXPECT_EQ(changes[0], changes[1]);
    EXPECT_GT(changes[0], rows * columns / 3);
  }
}

class CoupledTest : public testing::TestWithParam<int> {};

TEST_P(CoupledTest, SweepAgreesWithTheOracle) {
  ThreadPool pool(3);
  const SolveContext context{&pool, {}};
  const ProblemShape shape = Shapes()[GetParam()];
  LayerProblem problem = MakeCoupledProblem(shape, 2);
  if (shape.columns > 1) SetApart(&problem);
  const Start start = UncoupledStart(problem, &pool);
  LnqSettings settings;
  settings.levels = 4;
  const auto model = PrepareCoupledModel(problem, settings, nullptr, &pool);
  ASSERT_TRUE(model.ok()) << model.status();
  const PlainObjective64 objective{*model, static_cast<double>(0.4f)};
  CoupledDescent descent(*model, problem.weight.const_data_ptr<float>(),
                         problem.apart.empty() ? nullptr : problem.apart.data(), 4, context);
  const CoupledSolution swept = descent.SweepOnce(start.codes, start.table, 0.4);
  const std::vector<double> expected = SweepOracle(problem, objective, start);
  const std::vector<double> actual = Errors(problem, swept.codes, swept.table);
  int64_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) different += actual[i] != expected[i];
  EXPECT_EQ(different, 0) << shape.name;
  const double value = objective.Value(actual);
  EXPECT_NEAR(swept.objective_after, value, 1e-4 * value) << shape.name;
  EXPECT_LE(value, objective.Value(Errors(problem, start.codes, start.table)));
}

TEST_P(CoupledTest, DescentLowersTheObjectiveAndReportsIt) {
  const ProblemShape shape = Shapes()[GetParam()];
  for (const bool apart : {false, true}) {
    LayerProblem problem = MakeCoupledProblem(shape, 2);
    if (apart) SetApart(&problem);
    std::vector<CoupledSolution> first;
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      const SolveContext context{&pool, {}};
      const Start start = UncoupledStart(problem, &pool);
      LnqSettings settings;
      settings.levels = 4;
      const auto model = PrepareCoupledModel(problem, settings, nullptr, &pool);
      ASSERT_TRUE(model.ok()) << model.status();
      CoupledDescent descent(*model, problem.weight.const_data_ptr<float>(),
                             apart ? problem.apart.data() : nullptr, 4, context);
      const std::vector<double> shrinkages = {0.8, 0.3};
      const auto solutions = descent.Descend(start.codes, start.table, shrinkages, 2);
      ASSERT_TRUE(solutions.ok());
      if (threads == 1) first = *solutions;
      for (size_t i = 0; i < shrinkages.size(); ++i) {
        const CoupledSolution& solution = (*solutions)[i];
        EXPECT_EQ(solution.codes, first[i].codes) << shape.name << ", threads " << threads;
        EXPECT_EQ(solution.table, first[i].table) << shape.name << ", threads " << threads;
        const PlainObjective64 objective{*model,
                                         static_cast<double>(static_cast<float>(shrinkages[i]))};
        const double before = objective.Value(Errors(problem, start.codes, start.table));
        const double after = objective.Value(Errors(problem, solution.codes, solution.table));
        EXPECT_NEAR(solution.objective_before, before, 1e-4 * before) << shape.name;
        EXPECT_NEAR(solution.objective_after, after, 1e-4 * before) << shape.name;
        EXPECT_LE(after, before * (1 + 1e-6)) << shape.name;
        if (shape.columns >= 30) {
          EXPECT_LT(after, 0.98 * before) << shape.name;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CoupledTest, testing::Range(0, 6));

TEST(SolveVariantsTest, EachVariantIsWhatItIsAlone) {
  ThreadPool pool(2);
  const SolveContext context{&pool, {}};
  LayerProblem problem =
      MakeCoupledProblem({.name = "", .rows = 40, .columns = 50, .groups = 2, .tokens = 90}, 2);
  const std::vector<Variant> variants = {{2, 1}, {3, 0.5}, {2, 0.5}, {2, 0.2}};
  const auto together = SolveVariants("lnq", problem, variants, context);
  ASSERT_TRUE(together.ok()) << together.status();
  ASSERT_EQ(together->size(), variants.size());
  for (size_t i = 0; i < variants.size(); ++i) {
    problem.bits = variants[i].bits;
    problem.shrinkage = variants[i].shrinkage;
    const auto alone = SolveLayer("lnq", problem, context);
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ((*together)[i].packed, alone->packed) << i;
    EXPECT_EQ((*together)[i].lut, alone->lut) << i;
    const SolveRecord& record = (*together)[i].record;
    EXPECT_EQ(record.numbers.at("shrinkage"), variants[i].shrinkage);
    if (variants[i].shrinkage == 1) continue;
    EXPECT_LT(record.numbers.at("coupled_objective_final"),
              record.numbers.at("coupled_objective_initial"));
  }
  // What was gained on one objective is paid for on the other.
  EXPECT_GT(*(*together)[3].record.objective_final, *(*together)[0].record.objective_final);
}

TEST(SolveVariantsTest, RefusesWithoutTheStatistic) {
  ThreadPool pool(1);
  LayerProblem problem = MakeProblem({.name = "", .rows = 4, .columns = 4, .tokens = 9}, 2);
  problem.objective = Objective::kCoupled;
  problem.output_fisher = at::Tensor();
  const auto refused = SolveVariants("lnq", problem, std::vector<Variant>{{2, 0.5}}, {&pool, {}});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(refused.status().message()).find("output_fisher"), std::string::npos);
}

TEST(SolveVariantsTest, Cancels) {
  ThreadPool pool(2);
  const LayerProblem problem =
      MakeCoupledProblem({.name = "", .rows = 40, .columns = 50, .tokens = 90}, 2);
  int asked = 0;
  const SolveContext context{&pool, [&] { return ++asked > 1; }};
  const auto cancelled = SolveVariants("lnq", problem, std::vector<Variant>{{2, 0.5}}, context);
  EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace gradq
