// Which weights each policy takes, and what it refuses.

#include "lib/solvers/outlier_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/catalog/log_buckets.h"
#include "lib/solvers/quantizer.h"
#include "lib/solvers/requant.h"
#include "lib/solvers/score_summary.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

using Mask = std::vector<uint8_t>;

TEST(TopScoresTest, TakesTheLargestAndOfEqualOnesTheFirst) {
  const std::vector<float> scores = {1, 3, 2, 3, 0, 3, 2};
  EXPECT_EQ(TopScores(scores, 0), (Mask{0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(TopScores(scores, 2), (Mask{0, 1, 0, 1, 0, 0, 0}));
  EXPECT_EQ(TopScores(scores, 4), (Mask{0, 1, 1, 1, 0, 1, 0}));
  EXPECT_EQ(TopScores(scores, 9), (Mask{1, 1, 1, 1, 1, 1, 1}));
}

TEST(OutlierCountTest, RoundsHalfUp) {
  EXPECT_EQ(OutlierCount(0.01, 49), 0);
  EXPECT_EQ(OutlierCount(0.01, 50), 1);
  EXPECT_EQ(OutlierCount(0.2, 1), 0);
  EXPECT_EQ(OutlierCount(1.0, 7), 7);
}

// A threshold on an edge takes exactly the scores of the buckets from there on.
TEST(ScoreSummaryTest, AThresholdSelectsWholeBuckets) {
  std::vector<float> scores = Pseudorandoms(5000, 7);
  for (float& score : scores) score *= score * score;
  scores.push_back(0.0f);
  scores.push_back(static_cast<float>(LogBucketEdge(-64)));
  const ScoreSummary summary = *SummarizeScores(scores, {});
  EXPECT_EQ(summary.weights, 5002);
  EXPECT_EQ(std::accumulate(summary.count.begin(), summary.count.end(), int64_t{0}),
            std::count_if(scores.begin(), scores.end(), [](float score) { return score > 0; }));
  EXPECT_TRUE(std::is_sorted(summary.bucket.begin(), summary.bucket.end()));
  int64_t from_here = 0;
  for (size_t i = summary.bucket.size(); i-- > 0;) {
    from_here += summary.count[i];
    const Mask mask = ScoresFrom(scores, LogBucketEdge(summary.bucket[i]));
    ASSERT_EQ(std::count(mask.begin(), mask.end(), 1), from_here) << summary.bucket[i];
  }
  double sum = 0, size = 0;
  for (const float score : scores) {
    sum += score;
    size += std::fabs(score);
  }
  EXPECT_EQ(summary.signed_sum, sum);
  EXPECT_EQ(summary.absolute_sum, size);
}

TEST(ScoreSummaryTest, WeightsApartAndNegativeScoresCountInTheSumsOnly) {
  const ScoreSummary summary =
      *SummarizeScores(std::vector<float>{1.0f, 4.0f, 1.5f, -8.0f}, Mask{0, 1, 0, 0});
  EXPECT_EQ(summary.signed_sum, -1.5);
  EXPECT_EQ(summary.absolute_sum, 14.5);
  EXPECT_EQ(summary.bucket, (std::vector<int32_t>{0, 37}));
  EXPECT_EQ(summary.count, (std::vector<int64_t>{1, 1}));
}

TEST(ScoreSummaryTest, ScoresThatAreNotFiniteAreRefused) {
  for (const float bad : {HUGE_VALF, -HUGE_VALF, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(SummarizeScores(std::vector<float>{1.0f, bad}, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

class PolicyTest : public testing::Test {
 protected:
  PolicyTest() : problem_(MakeProblem({"", 12, 40, 2, 90}, 3)) {}

  absl::StatusOr<QuantizedLinear> Solve(const std::string& method = "lnq") {
    return SolveLayer(method, problem_, {&pool_, nullptr});
  }
  Mask Chosen(const std::string& method = "lnq") {
    const auto linear = Solve(method);
    EXPECT_TRUE(linear.ok()) << linear.status();
    if (!linear.ok()) return {};
    record_ = linear->record;
    return ApartMask(*linear);
  }
  static std::vector<float> Sizes(const at::Tensor& tensor) {
    std::vector<float> sizes(tensor.numel());
    for (size_t i = 0; i < sizes.size(); ++i)
      sizes[i] = std::fabs(tensor.const_data_ptr<float>()[i]);
    return sizes;
  }
  absl::StatusCode Refused() { return Solve().status().code(); }

  ThreadPool pool_{2};
  LayerProblem problem_;
  SolveRecord record_;
};

TEST_F(PolicyTest, NoFractionMeansTheSameResultAsNoPolicy) {
  const auto none = Solve();
  ASSERT_TRUE(none.ok());
  for (const char* policy : {"gwq", "squeezellm", "pqi"}) {
    problem_.outliers = policy;
    problem_.outlier_options = {{"fraction", "0"}};
    const auto linear = Solve();
    ASSERT_TRUE(linear.ok()) << linear.status();
    EXPECT_EQ(linear->packed, none->packed);
    EXPECT_EQ(linear->lut, none->lut);
    EXPECT_TRUE(linear->outliers.empty());
    EXPECT_EQ(linear->record.objective_final, none->record.objective_final);
  }
}

TEST_F(PolicyTest, GwqRanksByItsScore) {
  const auto dense = Solve();
  ASSERT_TRUE(dense.ok());
  std::vector<float> error = Dequantize(*dense);
  for (size_t i = 0; i < error.size(); ++i) error[i] -= problem_.weight.const_data_ptr<float>()[i];
  const std::vector<float> gradient = Sizes(problem_.weight_gradient);
  std::vector<float> moved(error.size()), fisher(error.size());
  for (size_t i = 0; i < error.size(); ++i) {
    moved[i] = std::fabs(gradient[i] * error[i]);
    fisher[i] = problem_.fisher_diagonal.const_data_ptr<float>()[i] * (error[i] * error[i]);
  }
  problem_.outliers = "gwq";
  const auto expect = [&](const char* score, const std::vector<float>& scores) {
    problem_.outlier_options = {{"score", score}, {"fraction", "0.05"}};
    EXPECT_EQ(Chosen(), TopScores(scores, 24)) << score;
    EXPECT_GT(record_.numbers.at("outlier_threshold"), 0.0);
    EXPECT_EQ(std::count_if(scores.begin(), scores.end(),
                            [&](float s) { return s >= record_.numbers.at("outlier_threshold"); }),
              24);
  };
  expect("gradient", gradient);
  expect("gradient_delta", moved);
  expect("fisher_delta", fisher);
  expect("magnitude", Sizes(problem_.weight));
}

TEST_F(PolicyTest, GwqWithAWiderScopeTakesTheDecidedThreshold) {
  problem_.outliers = "gwq";
  problem_.outlier_options = {{"scope", "model"}};
  EXPECT_EQ(Refused(), absl::StatusCode::kInvalidArgument);  // nothing decided
  problem_.decision.threshold = 0.9;
  EXPECT_EQ(Chosen(), ScoresFrom(Sizes(problem_.weight_gradient), 0.9));
  EXPECT_EQ(record_.numbers.at("outlier_threshold"), 0.9);
  problem_.decision.threshold = 1e9;
  EXPECT_EQ(Chosen(), Mask());
}

TEST_F(PolicyTest, SqueezellmTakesSensitiveWeightsThenLargeOnes) {
  problem_.outliers = "squeezellm";
  problem_.outlier_options = {{"fraction", "0.05"}, {"sensitive_fraction", "0.0125"}};
  const Mask sensitive = TopScores(Sizes(problem_.fisher_diagonal), 6);
  std::vector<float> rest = Sizes(problem_.weight);
  for (size_t i = 0; i < rest.size(); ++i) rest[i] = sensitive[i] != 0 ? 0.0f : rest[i];
  Mask expected = TopScores(rest, 18);
  const double threshold = LeastChosen(rest, expected);
  for (size_t i = 0; i < rest.size(); ++i) expected[i] |= sensitive[i];
  EXPECT_EQ(Chosen(), expected);
  EXPECT_EQ(record_.numbers.at("sensitive_outliers"), 6);
  EXPECT_EQ(record_.numbers.at("range_outliers"), 18);
  EXPECT_EQ(record_.numbers.at("outlier_threshold"), threshold);
}

TEST_F(PolicyTest, PqiTakesTheDecidedShareBySize) {
  problem_.outliers = "pqi";
  EXPECT_EQ(Chosen(), Mask());  // undecided: the first round
  problem_.decision.fraction = 0.05;
  EXPECT_EQ(Chosen(), TopScores(Sizes(problem_.weight), 24));
}

TEST_F(PolicyTest, MissingStatisticsAndBadFractionsAreRefused) {
  problem_.outliers = "squeezellm";
  problem_.outlier_options = {{"fraction", "0.21"}};
  EXPECT_EQ(Refused(), absl::StatusCode::kInvalidArgument);
  problem_.outlier_options = {{"fraction", "-0.01"}};
  EXPECT_EQ(Refused(), absl::StatusCode::kInvalidArgument);
  problem_.outlier_options = {};
  problem_.fisher_diagonal = at::Tensor();
  EXPECT_EQ(Refused(), absl::StatusCode::kInvalidArgument);
  problem_.outliers = "gwq";
  problem_.weight_gradient = at::Tensor();
  EXPECT_EQ(Refused(), absl::StatusCode::kInvalidArgument);
  problem_.outliers = "gqw";
  EXPECT_EQ(Refused(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PolicyTest, AnOutlierBeyondFp16IsRefused) {
  problem_.weight.mutable_data_ptr<float>()[17] = 1e6f;
  problem_.outliers = "squeezellm";
  problem_.outlier_options = {{"fraction", "0.05"}};
  const absl::Status status = Solve().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find(problem_.name), std::string::npos) << status;
}

}  // namespace
}  // namespace gradq
