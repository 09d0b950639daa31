#include "lib/solvers/requant.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/catalog/program.h"
#include "lib/format/packing.h"
#include "lib/solvers/quantizer.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

// F(w) = Σ_i (w_i^3 + w_i w_{i+1}): two nodes integrate its gradient exactly.
double Loss(const std::vector<double>& w) {
  double sum = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    sum += w[i] * w[i] * w[i] + (i + 1 < w.size() ? w[i] * w[i + 1] : 0);
  }
  return sum;
}

TEST(PqiScoresTest, SumUpToTheLossDifference) {
  const std::vector<float> from = Pseudorandoms(40, 1), to = Pseudorandoms(40, 2);
  constexpr int64_t kSequences = 4;
  std::vector<float> gradient(40, 0.0f);
  for (const PathNode& node : GaussLegendre(2)) {
    for (size_t i = 0; i < 40; ++i) {
      const auto at = [&](size_t j) { return from[j] + node.t * (to[j] - from[j]); };
      const double slope = 3 * at(i) * at(i) + (i > 0 ? at(i - 1) : 0) + (i < 39 ? at(i + 1) : 0);
      gradient[i] += static_cast<float>(kSequences * node.coefficient * slope);
    }
  }
  double sum = 0;
  for (const float score : PqiScores(from, to, gradient, kSequences)) sum += score;
  EXPECT_NEAR(sum, Loss({to.begin(), to.end()}) - Loss({from.begin(), from.end()}), 1e-5);
}

class DetachTest : public testing::Test {
 protected:
  DetachTest() : problem_(MakeProblem({"", 9, 30, 1, 60}, 3)) {
    problem_.outliers = "squeezellm";
    problem_.outlier_options = {{"fraction", "0.05"}};
    ThreadPool pool(1);
    linear_ = *SolveLayer("lnq", problem_, {&pool, nullptr});
    weights_.assign(problem_.weight.const_data_ptr<float>(),
                    problem_.weight.const_data_ptr<float>() + 270);
  }
  LayerProblem problem_;
  QuantizedLinear linear_;
  std::vector<float> weights_;
};

TEST_F(DetachTest, AddsWeightsAboveTheThresholdAndKeepsTheRest) {
  const QuantizedLinear before = linear_;
  const std::vector<uint8_t> old = ApartMask(before);
  std::vector<float> scores = Pseudorandoms(270, 5);
  ASSERT_TRUE(DetachOutliers(weights_, scores, 0.5, &linear_).ok());
  EXPECT_EQ(linear_.packed, before.packed);
  EXPECT_EQ(linear_.lut, before.lut);
  const std::vector<uint8_t> now = ApartMask(linear_);
  const std::vector<float> values = Dequantize(linear_), were = Dequantize(before),
                           dense = DequantizeDense(linear_);
  int64_t added = 0;
  for (size_t i = 0; i < 270; ++i) {
    EXPECT_EQ(now[i], old[i] != 0 || scores[i] >= 0.5f);
    added += now[i] != old[i];
    if (now[i] == old[i]) {
      EXPECT_EQ(values[i], were[i]);
    } else {
      EXPECT_EQ(values[i], dense[i] + Float16Value(Float16Bits(weights_[i] - dense[i])));
    }
  }
  EXPECT_GT(added, 30);
  EXPECT_EQ(linear_.record.numbers.at("detached"), static_cast<double>(added));
  EXPECT_EQ(linear_.record.numbers.at("outliers"), static_cast<double>(added + 14));
  EXPECT_FALSE(linear_.record.objective_final.has_value());
  EXPECT_TRUE(Validate(linear_).ok());
  // A second step counts on.
  ASSERT_TRUE(DetachOutliers(weights_, scores, 0.25, &linear_).ok());
  EXPECT_GT(linear_.record.numbers.at("detached"), static_cast<double>(added));
}

TEST_F(DetachTest, NothingAboveTheThreshold) {
  const QuantizedLinear before = linear_;
  ASSERT_TRUE(DetachOutliers(weights_, std::vector<float>(270, 0.5f), 0.6, &linear_).ok());
  EXPECT_EQ(ApartMask(linear_), ApartMask(before));
  EXPECT_EQ(linear_.record.numbers.at("detached"), 0);
}

TEST_F(DetachTest, WrongSizesAreRefused) {
  const absl::Status status =
      DetachOutliers(weights_, std::vector<float>(269, 1.0f), 0.5, &linear_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find(problem_.name), std::string::npos);
}

}  // namespace
}  // namespace gradq
