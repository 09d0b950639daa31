#include "lib/jobs/decide.h"

#include <cmath>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"
#include "lib/catalog/log_buckets.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

v1::ScoreSummary Summary(const std::string& linear, const std::vector<double>& scores) {
  std::map<int, int64_t> buckets;
  v1::ScoreSummary summary;
  summary.set_linear(linear);
  summary.set_weights(static_cast<int64_t>(scores.size()));
  for (const double score : scores) {
    summary.set_absolute_sum(summary.absolute_sum() + score);
    if (score > 0) ++buckets[LogBucket(score)];
  }
  for (const auto& [bucket, count] : buckets) {
    summary.add_bucket(bucket);
    summary.add_count(count);
  }
  return summary;
}

std::vector<double> Scores(uint32_t seed, int count, double scale) {
  std::mt19937 random(seed);
  std::lognormal_distribution<double> distribution(0, 2);
  std::vector<double> scores(count);
  for (double& score : scores) score = random() % 10 == 0 ? 0 : scale * distribution(random);
  return scores;
}

int64_t NotBelow(const std::vector<double>& scores, double threshold) {
  return std::count_if(scores.begin(), scores.end(),
                       [&](double score) { return score >= threshold; });
}

TEST(DecideThresholds, TakeAsManyAsFitOverTheModelAndPerBlock) {
  const std::vector<std::vector<double>> scores = {Scores(1, 5000, 1), Scores(2, 3000, 8),
                                                   Scores(3, 7000, 0.1)};
  std::vector<v1::ScoreSummary> summaries;
  for (size_t i = 0; i < scores.size(); ++i)
    summaries.push_back(Summary(StrCat("l", i), scores[i]));
  const std::vector<const v1::ScoreSummary*> all = {&summaries[0], &summaries[1], &summaries[2]};
  for (const double fraction : {0.0005, 0.01, 0.2}) {
    const auto model = DecideThresholds(all, {0, 0, 0}, fraction);
    ASSERT_TRUE(model.ok()) << model.status();
    const double threshold = model->numbers().at("threshold");
    int64_t taken = 0, more = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      EXPECT_EQ(model->linears(static_cast<int>(i)).threshold(), threshold);
      taken += NotBelow(scores[i], threshold);
      // The next lower bucket would be too much (buckets are a factor of 2^(1/64) wide).
      more += NotBelow(scores[i], threshold * std::exp2(-1.5 / 64));
    }
    EXPECT_LE(taken, std::llround(fraction * 15000));
    EXPECT_GT(more, std::llround(fraction * 15000) - 1);
    EXPECT_NEAR(model->numbers().at("outlier_fraction"), static_cast<double>(taken) / 15000, 1e-15);
  }
  const auto blocks = DecideThresholds(all, {0, 1, 1}, 0.01);
  EXPECT_FALSE(blocks->numbers().contains("threshold"));
  EXPECT_LE(NotBelow(scores[0], blocks->linears(0).threshold()), 50);
  EXPECT_GE(NotBelow(scores[0], blocks->linears(0).threshold()), 40);
  EXPECT_EQ(blocks->linears(1).threshold(), blocks->linears(2).threshold());
  EXPECT_NE(blocks->linears(0).threshold(), blocks->linears(1).threshold());
}

TEST(DecideThresholds, NothingAndEverything) {
  const std::vector<double> equal(100, 2.0);
  const v1::ScoreSummary summary = Summary("l", equal);
  // A bucket is taken whole or not at all.
  const auto none = DecideThresholds({&summary}, {0}, 0.5);
  EXPECT_EQ(NotBelow(equal, none->linears(0).threshold()), 0);
  const auto every = DecideThresholds({&summary}, {0}, 1.0);
  EXPECT_EQ(NotBelow(equal, every->linears(0).threshold()), 100);
  const v1::ScoreSummary zeros = Summary("l", std::vector<double>(10, 0.0));
  EXPECT_GT(DecideThresholds({&zeros}, {0}, 0.5)->linears(0).threshold(), 1e300);
}

TEST(DecideThresholds, RefusesADamagedHistogram) {
  v1::ScoreSummary summary = Summary("model.l", Scores(1, 100, 1));
  summary.add_bucket(5);
  EXPECT_THAT(std::string(DecideThresholds({&summary}, {0}, 0.1).status().message()),
              HasSubstr("model.l"));
  summary.add_count(1000);
  EXPECT_EQ(DecideThresholds({&summary}, {0}, 0.1).status().code(), absl::StatusCode::kInternal);
}

TEST(DecideShares, FollowTheMeanScoreAndKeepTheSum) {
  std::vector<v1::ScoreSummary> summaries(3);
  const double sums[] = {10, 80, 5};
  const int64_t weights[] = {1000, 4000, 500};
  std::vector<const v1::ScoreSummary*> all;
  for (int i = 0; i < 3; ++i) {
    summaries[i].set_linear(StrCat("l", i));
    summaries[i].set_absolute_sum(sums[i]);
    summaries[i].set_weights(weights[i]);
    all.push_back(&summaries[i]);
  }
  const auto kept = [&](const v1::Decision& decision) {
    double sum = 0;
    for (int i = 0; i < 3; ++i) {
      sum += decision.linears(i).outlier_fraction() * static_cast<double>(weights[i]);
    }
    return sum;
  };
  const auto linear = DecideShares(all, 0.004, 1);
  EXPECT_NEAR(kept(*linear), 0.004 * 5500, 1e-12);
  // Means 0.01, 0.02, 0.01.
  EXPECT_NEAR(linear->linears(1).outlier_fraction() / linear->linears(0).outlier_fraction(), 2,
              1e-12);
  EXPECT_NEAR(linear->linears(2).outlier_fraction(), linear->linears(0).outlier_fraction(), 1e-15);
  const auto root = DecideShares(all, 0.004, 0.5);
  EXPECT_NEAR(root->linears(1).outlier_fraction() / root->linears(0).outlier_fraction(),
              std::sqrt(2.0), 1e-12);
  const auto flat = DecideShares(all, 0.004, 0);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(flat->linears(i).outlier_fraction(), 0.004, 1e-15);
}

TEST(DecideShares, CutsAtTheLargestShareAndGivesTheRestToTheOthers) {
  std::vector<v1::ScoreSummary> summaries(3);
  const double sums[] = {1000, 1, 2};
  std::vector<const v1::ScoreSummary*> all;
  for (int i = 0; i < 3; ++i) {
    summaries[i].set_linear(StrCat("l", i));
    summaries[i].set_absolute_sum(sums[i]);
    summaries[i].set_weights(100);
    all.push_back(&summaries[i]);
  }
  const auto decision = DecideShares(all, 0.2, 1);
  EXPECT_DOUBLE_EQ(decision->linears(0).outlier_fraction(), kLargestShare);
  EXPECT_NEAR(decision->linears(1).outlier_fraction(), 0.1 / 3, 1e-12);
  EXPECT_NEAR(decision->linears(2).outlier_fraction(), 0.2 / 3, 1e-12);
  for (v1::ScoreSummary& summary : summaries) summary.set_absolute_sum(0);
  const auto equal = DecideShares(all, 0.2, 1);
  for (const v1::LinearDecision& linear : equal->linears()) {
    EXPECT_DOUBLE_EQ(linear.outlier_fraction(), 0.2);
  }
  summaries[1].set_absolute_sum(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(std::string(DecideShares(all, 0.2, 1).status().message()), HasSubstr("l1"));
}

TEST(DecideShrinkage, TakesTheLowestLossAndOnTiesTheUncoupled) {
  const std::vector<Variant> variants = {{3, 1}, {3, 0.9}, {3, 0.7}};
  const auto chosen = [&](std::vector<double> sums) {
    v1::TaskResult loss;
    for (const double sum : sums) loss.add_node_loss_sum(sum);
    loss.set_loss_tokens(10);
    const auto decision = DecideShrinkage({"a", "b"}, variants, loss);
    EXPECT_TRUE(decision.ok()) << decision.status();
    EXPECT_EQ(decision->node_loss(1), sums[1] / 10);
    EXPECT_EQ(decision->linears_size(), 2);
    EXPECT_EQ(decision->linears(0).variant(), decision->linears(1).variant());
    return decision->numbers().at("shrinkage");
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(chosen({30, 29, 28}), 0.7);
  EXPECT_EQ(chosen({30, 28, 28}), 0.9);
  EXPECT_EQ(chosen({28, 28, 28}), 1);
  EXPECT_EQ(chosen({28, 29, nan}), 1);
  EXPECT_EQ(chosen({nan, 29, 30}), 0.9);
  EXPECT_FALSE(DecideShrinkage({"a"}, variants, v1::TaskResult()).ok());
}

TEST(DecideWidths, TiedLinearsShareTheirWidthUnderTheBudget) {
  // Two tied linears and a dear one.
  std::vector<v1::ShardSummary> shards(9);
  for (int l = 0; l < 3; ++l) {
    for (int v = 0; v < 3; ++v) {
      v1::ShardSummary& shard = shards[l * 3 + v];
      shard.set_weights(100);
      shard.set_bits(2 + v);
      shard.set_average_bits(2 + v);
      shard.set_predicted_loss_increase((l == 2 ? 10.0 : 1.0) / (1 << 2 * v));
    }
  }
  std::vector<PricedLinear> linears;
  for (int l = 0; l < 3; ++l) {
    linears.push_back(
        {StrCat("l", l), {&shards[l * 3], &shards[l * 3 + 1], &shards[l * 3 + 2]}, l == 2 ? 1 : 0});
  }
  const auto decision = DecideWidths(linears, 2.99);
  ASSERT_TRUE(decision.ok()) << decision.status();
  EXPECT_EQ(decision->linears(0).variant(), 0);
  EXPECT_EQ(decision->linears(1).variant(), 0);
  EXPECT_EQ(decision->linears(2).variant(), 2);
  EXPECT_NEAR(decision->numbers().at("average_bits"), 8.0 / 3, 1e-12);
  EXPECT_NEAR(decision->numbers().at("predicted_loss_increase"), 2.625, 1e-12);
  EXPECT_EQ(DecideWidths(linears, 4)->linears(0).variant(), 2);
  EXPECT_EQ(DecideWidths(linears, 2)->linears(2).variant(), 0);
  EXPECT_THAT(std::string(DecideWidths(linears, 1.9).status().message()), HasSubstr("2 to 4"));
}

}  // namespace
}  // namespace gradq
