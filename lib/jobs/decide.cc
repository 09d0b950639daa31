#include "lib/jobs/decide.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/log_buckets.h"

namespace gradq {
namespace {

// Weights of one pool and how many of them have scores in each bucket.
struct Pool {
  int64_t weights = 0;
  std::map<int, int64_t> buckets;
};

absl::Status AddScores(const v1::ScoreSummary& score, Pool* pool) {
  int64_t counted = 0;
  bool good = score.bucket_size() == score.count_size() && score.weights() > 0;
  for (int i = 0; good && i < score.bucket_size(); ++i) {
    good = score.count(i) >= 0 && score.count(i) <= score.weights() - counted &&
           score.bucket(i) >= -65408 && score.bucket(i) < 65535;
    if (!good) break;
    counted += score.count(i);
    pool->buckets[score.bucket(i)] += score.count(i);
  }
  if (!good) return absl::InternalError(StrCat("histogram of scores is damaged: ", score.linear()));
  pool->weights += score.weights();
  return absl::OkStatus();
}

struct Threshold {
  double value = std::numeric_limits<double>::infinity();
  int64_t taken = 0;
};

Threshold ThresholdOf(const Pool& pool, double fraction) {
  const auto budget =
      static_cast<int64_t>(std::floor(fraction * static_cast<double>(pool.weights) + 0.5));
  Threshold threshold;
  // Nothing fits: above all there are.
  if (!pool.buckets.empty()) threshold.value = LogBucketEdge(pool.buckets.rbegin()->first + 1);
  for (auto it = pool.buckets.rbegin(); it != pool.buckets.rend(); ++it) {
    if (it->second > budget - threshold.taken) break;
    threshold.taken += it->second;
    if (it->second > 0) threshold.value = LogBucketEdge(it->first);
  }
  return threshold;
}

}  // namespace

absl::StatusOr<v1::Decision> DecideThresholds(const std::vector<const v1::ScoreSummary*>& scores,
                                              const std::vector<int>& pool, double fraction) {
  std::map<int, Pool> pools;
  int64_t weights = 0, taken = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    GRADQ_RETURN_IF_ERROR(AddScores(*scores[i], &pools[pool[i]]));
    weights += scores[i]->weights();
  }
  std::map<int, Threshold> thresholds;
  for (const auto& [id, merged] : pools) {
    thresholds[id] = ThresholdOf(merged, fraction);
    taken += thresholds[id].taken;
  }
  v1::Decision decision;
  for (size_t i = 0; i < scores.size(); ++i) {
    v1::LinearDecision& linear = *decision.add_linears();
    linear.set_linear(scores[i]->linear());
    linear.set_threshold(thresholds[pool[i]].value);
  }
  auto& numbers = *decision.mutable_numbers();
  if (thresholds.size() == 1) numbers["threshold"] = thresholds.begin()->second.value;
  numbers["outlier_fraction"] =
      weights == 0 ? 0 : static_cast<double>(taken) / static_cast<double>(weights);
  return decision;
}

absl::StatusOr<v1::Decision> DecideShares(const std::vector<const v1::ScoreSummary*>& scores,
                                          double fraction, double exponent) {
  const size_t count = scores.size();
  std::vector<double> size(count), pull(count), share(count, 0.0);
  double weights = 0, most = 0;
  for (size_t i = 0; i < count; ++i) {
    size[i] = static_cast<double>(scores[i]->weights());
    const double mean = scores[i]->absolute_sum() / size[i];
    if (!(size[i] > 0) || !std::isfinite(mean) || mean < 0) {
      return absl::InternalError(StrCat("sum of scores is damaged: ", scores[i]->linear()));
    }
    pull[i] = mean;
    weights += size[i];
    most = std::max(most, mean);
  }
  for (double& value : pull) value = most > 0 ? std::pow(value / most, exponent) : 1.0;
  // Linears are cut one round after the other until the rest stays below the cut: at most one round
  // per linear.
  std::vector<bool> cut(count, false);
  double budget = fraction * weights;
  while (true) {
    double pulled = 0;
    for (size_t i = 0; i < count; ++i) pulled += cut[i] ? 0 : pull[i] * size[i];
    bool more = false;
    for (size_t i = 0; i < count; ++i) {
      if (cut[i]) continue;
      share[i] = pulled > 0 ? budget * pull[i] / pulled : 0;
      more |= share[i] > kLargestShare;
    }
    if (!more) break;
    for (size_t i = 0; i < count; ++i) {
      if (cut[i] || share[i] <= kLargestShare) continue;
      cut[i] = true;
      share[i] = kLargestShare;
      budget -= kLargestShare * size[i];
    }
    budget = std::max(budget, 0.0);
  }
  v1::Decision decision;
  double taken = 0;
  for (size_t i = 0; i < count; ++i) {
    v1::LinearDecision& linear = *decision.add_linears();
    linear.set_linear(scores[i]->linear());
    linear.set_outlier_fraction(share[i]);
    taken += share[i] * size[i];
  }
  (*decision.mutable_numbers())["outlier_fraction"] = weights > 0 ? taken / weights : 0;
  return decision;
}

absl::StatusOr<v1::Decision> DecideShrinkage(const std::vector<std::string>& linears,
                                             const std::vector<Variant>& variants,
                                             const v1::TaskResult& loss) {
  if (loss.node_loss_sum_size() != static_cast<int>(variants.size()) || loss.loss_tokens() <= 0) {
    return absl::InternalError(StrCat("losses and variants differ in number: ",
                                      loss.node_loss_sum_size(), ", ", variants.size()));
  }
  v1::Decision decision;
  int best = 0;
  for (int v = 0; v < loss.node_loss_sum_size(); ++v) {
    decision.add_node_loss(loss.node_loss_sum(v) / static_cast<double>(loss.loss_tokens()));
    const double lowest = decision.node_loss(best), here = decision.node_loss(v);
    if (std::isfinite(here) && (here < lowest || !std::isfinite(lowest))) best = v;
  }
  for (const std::string& name : linears) {
    v1::LinearDecision& linear = *decision.add_linears();
    linear.set_linear(name);
    linear.set_variant(best);
  }
  (*decision.mutable_numbers())["shrinkage"] = variants[best].shrinkage;
  return decision;
}

namespace {

int64_t StoredBitsOf(const v1::ShardSummary& shard) {
  return std::llround(shard.average_bits() * static_cast<double>(shard.weights()));
}

// What a choice of variants, one per tied item, comes to.
struct Total {
  double bits = 0, weights = 0, loss = 0;
};

Total TotalOf(const std::vector<PricedLinear>& linears, const std::vector<int>& choices) {
  Total total;
  for (const PricedLinear& linear : linears) {
    const v1::ShardSummary& shard = *linear.shards[choices[linear.tied]];
    total.bits += static_cast<double>(StoredBitsOf(shard));
    total.weights += static_cast<double>(shard.weights());
    total.loss += shard.predicted_loss_increase();
  }
  return total;
}

}  // namespace

absl::StatusOr<WidthFrontier> FrontierOf(const std::vector<PricedLinear>& linears) {
  std::vector<WidthItem> items;
  for (const PricedLinear& linear : linears) {
    if (linear.tied >= static_cast<int>(items.size())) items.resize(linear.tied + 1);
    WidthItem& item = items[linear.tied];
    item.resize(linear.shards.size());
    for (size_t v = 0; v < linear.shards.size(); ++v) {
      const v1::ShardSummary& shard = *linear.shards[v];
      item[v].bits += StoredBitsOf(shard);
      item[v].loss += shard.has_predicted_loss_increase()
                          ? shard.predicted_loss_increase()
                          : std::numeric_limits<double>::quiet_NaN();
    }
  }
  return WidthFrontier::Make(items);
}

absl::StatusOr<v1::Decision> DecideWidths(const std::vector<PricedLinear>& linears,
                                          double average_bits) {
  GRADQ_ASSIGN_OR_RETURN(const WidthFrontier frontier, FrontierOf(linears));
  double weights = 0;
  for (const PricedLinear& linear : linears) {
    weights += static_cast<double>(linear.shards[0]->weights());
  }
  // A budget that was printed from an average must not fail by the last bit of its double.
  const int point = frontier.Best(average_bits * weights * (1 + 1e-12));
  if (point < 0) {
    return absl::InvalidArgumentError(
        StrCat("average bits out of reach (the shards allow ",
               static_cast<double>(frontier.points().front().bits) / weights, " to ",
               static_cast<double>(frontier.points().back().bits) / weights, "): ", average_bits));
  }
  const std::vector<int> choices = frontier.Choices(point);
  v1::Decision decision;
  for (const PricedLinear& linear : linears) {
    v1::LinearDecision& made = *decision.add_linears();
    made.set_linear(linear.name);
    made.set_variant(choices[linear.tied]);
  }
  const Total total = TotalOf(linears, choices);
  (*decision.mutable_numbers())["average_bits"] = total.bits / total.weights;
  (*decision.mutable_numbers())["predicted_loss_increase"] = total.loss;
  return decision;
}

}  // namespace gradq
