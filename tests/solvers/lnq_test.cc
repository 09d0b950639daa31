// LNQ beyond the contract of all quantizers: more iterations never hurt, singular statistics are
// recorded, cancelling works.

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/solvers/quantizer.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

double FinalObjective(LayerProblem problem, int iterations, int cycles,
                      const std::string& solver = "best") {
  problem.options = {
      {"iterations", StrCat(iterations)}, {"cycles", StrCat(cycles)}, {"solver", solver}};
  ThreadPool pool(2);
  const auto linear = SolveLayer("lnq", problem, {&pool, nullptr});
  EXPECT_TRUE(linear.ok()) << linear.status();
  return *linear->record.objective_final;
}

TEST(Lnq, ObjectiveNeverRisesOverIterations) {
  for (const int bits : {2, 3, 4}) {
    const LayerProblem problem = MakeProblem({"", 45, 70, 3, 90}, bits);
    double before = FinalObjective(problem, 1, 4);
    const double first = before;
    for (int iterations = 2; iterations <= 6; ++iterations) {
      const double now = FinalObjective(problem, iterations, 4);
      // Rounding the table to fp16 comes after the last comparison.
      EXPECT_LE(now, before * 1.0001) << bits << " bits, " << iterations << " iterations";
      before = now;
    }
    EXPECT_LT(before, 0.95 * first);
  }
}

TEST(Lnq, BestSolverIsNotWorseThanThePublishedOne) {
  for (const int bits : {2, 3, 4}) {
    const LayerProblem problem = MakeProblem({"", 64, 96, 2, 120}, bits);
    EXPECT_LT(FinalObjective(problem, 3, 4), 0.98 * FinalObjective(problem, 3, 4, "published"))
        << bits;
  }
}

// A tile holds 32 rows; what else is in it must not matter.
TEST(Lnq, ARowsResultDependsOnItAlone) {
  LayerProblem many = MakeProblem({"", 40, 50, 1, 80}, 3);
  ThreadPool pool(2);
  const auto all = SolveLayer("lnq", many, {&pool, nullptr});
  ASSERT_TRUE(all.ok());
  const std::vector<float> expected = Dequantize(*all);
  for (const int64_t row : {int64_t{0}, int64_t{17}, int64_t{39}}) {
    LayerProblem single = many;
    const float* weight = many.weight.const_data_ptr<float>() + row * 50;
    single.weight = MakeTensor(std::vector<float>(weight, weight + 50), 1, 50);
    single.fisher_diagonal = at::Tensor();
    single.groups = {1, 1};
    const auto one = SolveLayer("lnq", single, {&pool, nullptr});
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_EQ(Dequantize(*one),
              std::vector<float>(expected.begin() + row * 50, expected.begin() + (row + 1) * 50));
  }
}

TEST(Lnq, RecordsTheLoadOfASingularStatisticOnly) {
  ThreadPool pool(2);
  for (const std::string solver : {"best", "published"}) {
    LayerProblem regular = MakeProblem({"", 8, 24, 1, 100}, 3),
                 singular = MakeProblem({"", 8, 24, 1, 5}, 3);
    regular.options = singular.options = {{"solver", solver}};
    const auto good = SolveLayer("lnq", regular, {&pool, nullptr});
    const auto loaded = SolveLayer("lnq", singular, {&pool, nullptr});
    ASSERT_TRUE(good.ok() && loaded.ok());
    EXPECT_TRUE(good->record.damping.empty()) << solver;
    EXPECT_FALSE(loaded->record.damping.empty()) << solver;
  }
}

TEST(Lnq, CancelledAtTheNextQuestion) {
  LayerProblem problem = MakeProblem({"", 70, 60, 1, 80}, 3);
  ThreadPool pool(2);
  for (const std::string solver : {"best", "published"}) {
    problem.options = {{"solver", solver}};
    for (const int after : {0, 1, 2, 4}) {
      std::atomic<int> asked = 0;
      const SolveContext context{&pool, [&] { return asked.fetch_add(1) >= after; }};
      EXPECT_EQ(SolveLayer("lnq", problem, context).status().code(), absl::StatusCode::kCancelled)
          << solver << ", " << after;
    }
  }
}

TEST(Lnq, PlainUsesOneMatrixForAllGroups) {
  LayerProblem problem = MakeProblem({"", 24, 40, 4, 80}, 3);
  problem.objective = Objective::kPlain;
  problem.fisher_blocks.clear();
  ThreadPool pool(1);
  const auto linear = SolveLayer("lnq", problem, {&pool, nullptr});
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_FALSE(linear->record.predicted_loss_increase.has_value());
  EXPECT_NEAR(*linear->record.objective_final, PlainObjective(problem, {problem.gram}, *linear),
              1e-6 * *linear->record.objective_final);
}

}  // namespace
}  // namespace gradq
