// What every outlier policy must do with every quantizer, at every width, on shapes that divide
// nothing: as many weights apart as asked for, each as exact as fp16 allows, the rest a valid
// result of the quantizer, the same bytes for any number of threads.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/format/packing.h"
#include "lib/solvers/outlier_policy.h"
#include "lib/solvers/quantizer.h"
#include "lib/solvers/requant.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

constexpr char kFraction[] = "0.1";

struct Case {
  std::string method;
  std::string solver;  // of lnq; "coupled": the coupled objective
  std::string policy;
  std::string score;  // of gwq
  int bits;
  ProblemShape shape;
};

std::vector<Case> Cases() {
  const std::vector<ProblemShape> shapes = {{"groups_do_not_divide", 37, 33, 5, 200},
                                            {"one_column", 9, 1, 2, 20},
                                            {"one_weight", 1, 1, 1, 5},
                                            {"zero_row", 6, 24, 2, 100, true},
                                            {"dead_input", 6, 25, 3, 100, false, true},
                                            {"singular", 10, 48, 2, 7},
                                            {"in_features_33", 5, 33, 2, 80},
                                            {"in_features_688", 3, 688, 1, 60}};
  std::vector<Case> cases;
  for (const QuantizerRow& row : Quantizers()) {
    std::vector<std::string> solvers = {""};
    if (row.name == "lnq") solvers = {"", "published", "coupled"};
    for (const OutlierPolicyRow& policy : OutlierPolicies()) {
      if (policy.name == "none") continue;  // quantizer_contract_test.cc
      for (const int bits : {2, 3, 4}) {
        for (const ProblemShape& shape : shapes) {
          for (const std::string& solver : solvers) {
            const std::string method(row.name), name(policy.name);
            cases.push_back({method, solver, name, "", bits, shape});
            if (name != "gwq" || bits != 3 || shape.columns > 600 || solver != "") continue;
            for (const char* score : {"gradient_delta", "fisher_delta", "magnitude"}) {
              cases.push_back({method, solver, name, score, bits, shape});
            }
          }
        }
      }
    }
  }
  return cases;
}

class OutlierContract : public testing::TestWithParam<Case> {
 protected:
  LayerProblem Problem() const {
    LayerProblem problem = MakeProblem(GetParam().shape, GetParam().bits);
    if (GetParam().solver == "coupled") {
      problem.objective = Objective::kCoupled;
      problem.shrinkage = 0.7;
    } else if (!GetParam().solver.empty()) {
      problem.options["solver"] = GetParam().solver;
    }
    problem.outliers = GetParam().policy;
    problem.outlier_options["fraction"] = kFraction;
    if (!GetParam().score.empty()) problem.outlier_options["score"] = GetParam().score;
    if (problem.outliers == "pqi") problem.decision.fraction = std::stod(kFraction);
    return problem;
  }
  absl::StatusOr<QuantizedLinear> Solve(const LayerProblem& problem, int threads) const {
    ThreadPool pool(threads);
    return SolveLayer(GetParam().method, problem, {&pool, nullptr});
  }
};

// Values that a code of weight `at` could stand for.
std::vector<float> Codewords(const QuantizedLinear& linear, int64_t at) {
  const int levels = 1 << linear.bits;
  const int64_t row = at / linear.in_features, column = at % linear.in_features;
  std::vector<float> values;
  if (linear.encoding == Encoding::kLut) {
    for (int q = 0; q < levels; ++q) values.push_back(Float16Value(linear.lut[row * levels + q]));
    return values;
  }
  const int64_t groups = (linear.in_features + linear.group_size - 1) / linear.group_size;
  const int64_t group = row * groups + column / linear.group_size;
  for (int q = 0; q < levels; ++q) {
    values.push_back(static_cast<float>(q - linear.zero_point[group]) *
                     Float16Value(linear.scale[group]));
  }
  return values;
}

// Unused entries of a table repeat the largest used one; the others rise.
void ExpectNoUnusedEntries(const QuantizedLinear& linear) {
  const auto codes =
      UnpackCodes(linear.packed, linear.out_features, linear.in_features, linear.bits);
  const int levels = 1 << linear.bits;
  for (int64_t row = 0; row < linear.out_features; ++row) {
    const auto first = codes.begin() + row * linear.in_features;
    const std::set<int> used(first, first + linear.in_features);
    const uint16_t* lut = linear.lut.data() + row * levels;
    for (int q = 1; q < levels; ++q) {
      if (used.contains(q)) {
        EXPECT_GT(Float16Value(lut[q]), Float16Value(lut[q - 1]));
      } else {
        EXPECT_EQ(lut[q], lut[*used.rbegin()]);
      }
    }
  }
}

TEST_P(OutlierContract, WeightsApartAreExactAndTheRestIsValid) {
  const LayerProblem problem = Problem();
  const auto linear = Solve(problem, 1);
  ASSERT_TRUE(linear.ok()) << linear.status();
  const std::string bytes = SerializeShard(*linear);
  const auto threaded = Solve(problem, 3);
  ASSERT_TRUE(threaded.ok());
  EXPECT_EQ(bytes, SerializeShard(*threaded));
  EXPECT_TRUE(Validate(*linear).ok());
  if (linear->encoding == Encoding::kLut) ExpectNoUnusedEntries(*linear);
  const auto read = ParseShard(bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  const std::vector<float> values = Dequantize(*linear), dense = DequantizeDense(*linear);
  EXPECT_EQ(Dequantize(*read), values);

  const int64_t weights = linear->weights();
  const int64_t wanted = OutlierCount(std::stod(kFraction), weights);
  std::vector<uint8_t> apart = ApartMask(*linear);
  apart.resize(weights, 0);
  EXPECT_EQ(std::count(apart.begin(), apart.end(), 1), wanted);
  EXPECT_DOUBLE_EQ(linear->outlier_fraction(),
                   static_cast<double>(wanted) / static_cast<double>(weights));
  EXPECT_EQ(linear->record.numbers.at("outliers"), static_cast<double>(wanted));
  const float* weight = problem.weight.const_data_ptr<float>();
  for (int64_t i = 0; i < weights; ++i) {
    if (apart[i] == 0) {
      EXPECT_EQ(values[i], dense[i]);
      continue;
    }
    const float distance = std::fabs(dense[i] - weight[i]);
    EXPECT_LE(std::fabs(values[i] - weight[i]), distance * 0x1p-11f + 0x1p-24f);
    // Affine codes are chosen before their scale is rounded.
    const float slack = linear->encoding == Encoding::kLut ? 0.0f : std::fabs(dense[i]) * 0x1p-10f;
    for (const float value : Codewords(*linear, i)) {
      EXPECT_LE(distance, std::fabs(value - weight[i]) + slack) << i;
    }
  }
}

// Σ |δ_i H_ij δ_j|: what cancels in an objective with a singular H.
double CancellingSum(const LayerProblem& problem, const std::vector<at::Tensor>& matrices,
                     const QuantizedLinear& linear) {
  std::vector<at::Tensor> sizes;
  for (const at::Tensor& matrix : matrices) {
    std::vector<float> values(matrix.numel());
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = std::fabs(matrix.const_data_ptr<float>()[i]);
    sizes.push_back(MakeTensor(values, matrix.size(0), matrix.size(1)));
  }
  LayerProblem moved = problem;
  QuantizedLinear zero = linear;
  const std::vector<float> values = Dequantize(linear);
  std::vector<float> errors(values.size());
  for (size_t i = 0; i < errors.size(); ++i)
    errors[i] = std::fabs(values[i] - problem.weight.const_data_ptr<float>()[i]);
  moved.weight = MakeTensor(errors, problem.weight.size(0), problem.weight.size(1));
  std::fill(zero.lut.begin(), zero.lut.end(), uint16_t{0});
  std::fill(zero.scale.begin(), zero.scale.end(), uint16_t{0});
  zero.outliers = {};
  return PlainObjective(moved, sizes, zero);
}

TEST_P(OutlierContract, RecordIsOfDensePartAndOutliersTogether) {
  for (const Objective objective : {Objective::kGuided, Objective::kPlain}) {
    LayerProblem problem = Problem();
    // Reported by the Fisher blocks when coupled.
    const bool coupled = problem.objective == Objective::kCoupled;
    if (coupled && objective == Objective::kPlain) continue;
    if (!coupled) problem.objective = objective;
    const auto linear = Solve(problem, 2);
    ASSERT_TRUE(linear.ok()) << linear.status();
    const std::vector<at::Tensor> matrices = objective == Objective::kPlain
                                                 ? std::vector<at::Tensor>{problem.gram}
                                                 : problem.fisher_blocks;
    const double expected = PlainObjective(problem, matrices, *linear);
    ASSERT_TRUE(linear->record.objective_final.has_value());
    EXPECT_NEAR(
        *linear->record.objective_final, expected,
        1e-6 * std::abs(expected) + 1e-6 + 1e-11 * CancellingSum(problem, matrices, *linear));
    EXPECT_TRUE(linear->record.predicted_loss_increase.has_value());
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return StrCat(c.method, c.solver, "_", c.policy, c.score, "_", c.bits, "_", c.shape.name, "_",
                info.index);
}
INSTANTIATE_TEST_SUITE_P(Rows, OutlierContract, testing::ValuesIn(Cases()), CaseName);

TEST(OutlierPolicyTable, EveryCatalogRowIsBoundOnceAndNothingElse) {
  std::vector<std::string> rows, bindings;
  for (const OutlierPolicyRow& row : OutlierPolicies()) rows.emplace_back(row.name);
  for (const OutlierPolicyBinding& binding : OutlierPolicyBindings())
    bindings.emplace_back(binding.name);
  EXPECT_EQ(rows, bindings);
}

}  // namespace
}  // namespace gradq
