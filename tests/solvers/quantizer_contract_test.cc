// What every row of the quantizer table must do, on shapes that divide nothing: same bytes for any
// number of threads, codes that survive packing, an error not above round-to-nearest, and clear
// refusals.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/statistics.h"
#include "lib/format/packing.h"
#include "lib/kernels/triangle.h"
#include "lib/solvers/quantizer.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

std::vector<ProblemShape> Shapes() {
  return {{"groups_do_not_divide", 37, 33, 5, 200},
          {"one_column", 9, 1, 2, 20},
          {"one_weight", 1, 1, 1, 5},
          {"zero_row", 6, 24, 2, 100, true},
          {"dead_input", 6, 25, 3, 100, false, true},
          {"singular", 10, 48, 2, 7},
          {"long_rows", 3, 688, 1, 60}};
}

struct Case {
  std::string method;
  std::string option;  // "solver=published"
  int bits;
  ProblemShape shape;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const QuantizerRow& row : Quantizers()) {
    for (const int bits : {row.min_bits, 2, 3, 4, row.max_bits}) {
      for (const ProblemShape& shape : Shapes()) {
        if (bits != 3 && shape.columns > 600) continue;
        cases.push_back({std::string(row.name), "", bits, shape});
        if (row.name == "lnq") cases.push_back({"lnq", "published", bits, shape});
      }
    }
  }
  return cases;
}

class QuantizerContract : public testing::TestWithParam<Case> {
 protected:
  LayerProblem Problem() const {
    LayerProblem problem = MakeProblem(GetParam().shape, GetParam().bits);
    if (!GetParam().option.empty()) problem.options["solver"] = GetParam().option;
    return problem;
  }
};

std::string Solved(const Case& parameter, const LayerProblem& problem, int threads) {
  ThreadPool pool(threads);
  const auto linear = SolveLayer(parameter.method, problem, {&pool, nullptr});
  EXPECT_TRUE(linear.ok()) << linear.status();
  return linear.ok() ? SerializeShard(*linear) : "";
}

TEST_P(QuantizerContract, SameBytesForAnyNumberOfThreads) {
  for (const Objective objective : {Objective::kGuided, Objective::kPlain}) {
    LayerProblem problem = Problem();
    problem.objective = objective;
    const std::string one = Solved(GetParam(), problem, 1);
    EXPECT_EQ(one, Solved(GetParam(), problem, 2));
    EXPECT_EQ(one, Solved(GetParam(), problem, 4));
  }
}

TEST_P(QuantizerContract, ResultIsValidAndPacksExactly) {
  ThreadPool pool(2);
  const LayerProblem problem = Problem();
  const auto linear = SolveLayer(GetParam().method, problem, {&pool, nullptr});
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->name, problem.name);
  EXPECT_EQ(linear->bits, problem.bits);
  EXPECT_EQ(linear->record.method, GetParam().method);
  EXPECT_TRUE(Validate(*linear).ok());
  const auto codes =
      UnpackCodes(linear->packed, linear->out_features, linear->in_features, linear->bits);
  EXPECT_EQ(PackCodes(codes, linear->out_features, linear->in_features, linear->bits),
            linear->packed);
  const auto read = ParseShard(SerializeShard(*linear));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Dequantize(*read), Dequantize(*linear));
  if (linear->encoding != Encoding::kLut) return;
  // Codes name the lowest of equal entries, and unused entries repeat the largest used.
  const int levels = 1 << linear->bits;
  for (int64_t row = 0; row < linear->out_features; ++row) {
    std::set<int> used;
    for (int64_t j = 0; j < linear->in_features; ++j)
      used.insert(codes[row * linear->in_features + j]);
    const uint16_t* lut = linear->lut.data() + row * levels;
    for (int q = 1; q < levels; ++q) {
      if (used.count(q) != 0) {
        EXPECT_GT(Float16Value(lut[q]), Float16Value(lut[q - 1]));
      } else {
        EXPECT_EQ(lut[q], lut[*used.rbegin()]);
      }
    }
  }
}

// Each method's own error against an affine grid per row with as many values: its objective where
// it minimises one, for squeezellm the weighted distance; a grid of its own per row is what tables
// compete with.
TEST_P(QuantizerContract, ErrorNotAboveRoundToNearest) {
  ThreadPool pool(2);
  const LayerProblem problem = Problem();
  LayerProblem grid = problem;
  grid.options = {{"group_size", "1048576"}};
  const auto linear = SolveLayer(GetParam().method, problem, {&pool, nullptr});
  const auto rounded = SolveLayer("rtn", grid, {&pool, nullptr});
  ASSERT_TRUE(linear.ok() && rounded.ok());
  const QuantizerRow* row = *FindQuantizer(GetParam().method);
  const auto error = [&](const QuantizedLinear& result) {
    if (row->uses_objective) return PlainObjective(problem, problem.fisher_blocks, result);
    const std::vector<float> quantized = Dequantize(result);
    double sum = 0.0;
    for (size_t i = 0; i < quantized.size(); ++i) {
      const double delta = quantized[i] - problem.weight.const_data_ptr<float>()[i];
      sum +=
          delta * delta *
          (GetParam().method == "rtn" ? 1.0 : problem.fisher_diagonal.const_data_ptr<float>()[i]);
    }
    return sum;
  };
  // Tables and grids are rounded to fp16.
  EXPECT_LE(error(*linear), error(*rounded) * 1.001 + 1e-5);
}

TEST_P(QuantizerContract, RecordAgreesWithTheDefinition) {
  ThreadPool pool(3);
  for (const Objective objective : {Objective::kGuided, Objective::kPlain}) {
    LayerProblem problem = Problem();
    problem.objective = objective;
    const auto linear = SolveLayer(GetParam().method, problem, {&pool, nullptr});
    ASSERT_TRUE(linear.ok()) << linear.status();
    const bool plain = objective == Objective::kPlain;
    const double expected = PlainObjective(
        problem, plain ? std::vector<at::Tensor>{problem.gram} : problem.fisher_blocks, *linear);
    ASSERT_TRUE(linear->record.objective_final.has_value());
    EXPECT_NEAR(*linear->record.objective_final, expected, 1e-6 * std::abs(expected) + 1e-6);
    if (linear->record.objective_initial.has_value() && GetParam().option.empty()) {
      EXPECT_LE(*linear->record.objective_final,
                *linear->record.objective_initial * (1 + 1e-6) + 1e-6);
    }
    // Price 0.5: Σ_k |J_k| objective_k / 2, by the Fisher blocks in both cases.
    LayerProblem rows = problem;
    double increase = 0.0;
    for (int k = 0; k < problem.groups.groups; ++k) {
      LayerProblem one = problem;
      std::vector<at::Tensor> only(
          problem.groups.groups,
          MakeTensor(std::vector<float>(problem.weight.size(1) * problem.weight.size(1), 0.0f),
                     problem.weight.size(1), problem.weight.size(1)));
      only[k] = problem.fisher_blocks[k];
      increase += 0.5 * static_cast<double>(problem.groups.size(k)) *
                  PlainObjective(problem, only, *linear);
    }
    ASSERT_TRUE(linear->record.predicted_loss_increase.has_value());
    EXPECT_NEAR(*linear->record.predicted_loss_increase, increase,
                1e-6 * std::abs(increase) + 1e-6);
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return StrCat(info.param.method, info.param.option, "_", info.param.bits, "_",
                info.param.shape.name, "_", info.index);
}
INSTANTIATE_TEST_SUITE_P(Rows, QuantizerContract, testing::ValuesIn(Cases()), CaseName);

TEST(QuantizerTable, EveryCatalogRowIsBoundOnceAndNothingElse) {
  std::vector<std::string> rows, bindings;
  for (const QuantizerRow& row : Quantizers()) rows.emplace_back(row.name);
  for (const QuantizerBinding& binding : QuantizerBindings()) bindings.emplace_back(binding.name);
  std::sort(rows.begin(), rows.end());
  std::sort(bindings.begin(), bindings.end());
  EXPECT_EQ(rows, bindings);
}

class QuantizerRefusal : public testing::TestWithParam<std::string> {
 protected:
  absl::Status Refused(const LayerProblem& problem) {
    ThreadPool pool(2);
    return SolveLayer(GetParam(), problem, {&pool, nullptr}).status();
  }
  LayerProblem problem_ = MakeProblem({"", 8, 20, 2, 50}, 3);
};

// Of the rows that read a statistic.
class StatisticRefusal : public QuantizerRefusal {};

TEST_P(QuantizerRefusal, UnknownOption) {
  problem_.options["cycels"] = "4";
  EXPECT_EQ(Refused(problem_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(QuantizerRefusal, NotFiniteWeight) {
  problem_.weight.mutable_data_ptr<float>()[17] = std::numeric_limits<float>::quiet_NaN();
  const absl::Status status = Refused(problem_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find(problem_.name), std::string::npos) << status;
}

TEST_P(QuantizerRefusal, WeightBeyondFp16) {
  for (int i = 0; i < 20; ++i)
    problem_.weight.mutable_data_ptr<float>()[i] = 1e6f * static_cast<float>(i + 1);
  const absl::Status status = Refused(problem_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(std::string(status.message()).find(problem_.name), std::string::npos) << status;
}

TEST_P(StatisticRefusal, NotFiniteStatistic) {
  problem_.fisher_blocks[1].mutable_data_ptr<float>()[3] = std::numeric_limits<float>::infinity();
  problem_.fisher_diagonal.mutable_data_ptr<float>()[3] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Refused(problem_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(StatisticRefusal, MissingStatistic) {
  problem_.fisher_blocks.clear();
  problem_.fisher_diagonal = at::Tensor();
  EXPECT_EQ(Refused(problem_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(QuantizerRefusal, BitsOutOfRange) {
  for (const int bits : {0, 9}) {
    problem_.bits = bits;
    EXPECT_EQ(Refused(problem_).code(), absl::StatusCode::kInvalidArgument);
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, QuantizerRefusal,
                         testing::Values("rtn", "gptq", "gptvq1d", "squeezellm", "lnq"));
INSTANTIATE_TEST_SUITE_P(Rows, StatisticRefusal,
                         testing::Values("gptq", "gptvq1d", "squeezellm", "lnq"));

TEST(SolveLayerTest, UnknownMethodIsRefused) {
  ThreadPool pool(1);
  EXPECT_EQ(SolveLayer("lqn", MakeProblem({"", 2, 3, 1, 9}, 2), {&pool, nullptr}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(AttachStatisticsTest, UnfoldsTrianglesAndRefusesWrongSizes) {
  const LayerProblem source = MakeProblem({"", 5, 37, 2, 40}, 3);
  std::map<std::string, at::Tensor> tensors;
  const auto fold = [](const at::Tensor& full) {
    const int64_t order = full.size(0);
    std::vector<float> packed(kernels::TriangleSize(order));
    kernels::FoldTriangle(full.const_data_ptr<float>(), order, packed.data());
    return MakeTensor(packed, 1, kernels::TriangleSize(order)).squeeze(0);
  };
  tensors["fisher_blocks/0"] = fold(source.fisher_blocks[0]);
  tensors["fisher_blocks/1"] = fold(source.fisher_blocks[1]);
  tensors["gram"] = fold(source.gram);
  tensors["fisher_diagonal"] = source.fisher_diagonal;
  LayerProblem problem;
  problem.name = source.name;
  problem.weight = source.weight;
  problem.groups = source.groups;
  const std::vector<std::string_view> needs = {kFisherBlocks, kGram, kFisherDiagonal};
  ASSERT_TRUE(AttachStatistics(tensors, needs, &problem).ok());
  EXPECT_TRUE(problem.gram.equal(source.gram));
  ASSERT_EQ(problem.fisher_blocks.size(), 2u);
  EXPECT_TRUE(problem.fisher_blocks[1].equal(source.fisher_blocks[1]));
  tensors["gram"] = fold(MakeProblem({"", 5, 36, 2, 40}, 3).gram);
  EXPECT_EQ(AttachStatistics(tensors, needs, &problem).code(), absl::StatusCode::kInvalidArgument);
  tensors.erase("gram");
  EXPECT_EQ(AttachStatistics(tensors, needs, &problem).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gradq
