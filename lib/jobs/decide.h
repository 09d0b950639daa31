#pragma once

// What a Decide task finds out: pure functions over stored summaries, in the order of the job's
// linears, so that a decision is the same after any failure. Called by the core.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gradq/v1/job.pb.h"
#include "lib/catalog/recipe.h"
#include "lib/jobs/width_frontier.h"

namespace gradq {

// THRESHOLD. Each pool of linears keeps apart the largest share of its weights that is not above
// `fraction` and consists of whole buckets of the merged histograms; the threshold is the lower
// edge of the last one. `pool[i]` is that of scores[i] (0, 1, ...). With one pool
// numbers["threshold"]; numbers["outlier_fraction"] is what the thresholds take of all weights.
// INTERNAL: a histogram that does not fit its linear.
absl::StatusOr<v1::Decision> DecideThresholds(const std::vector<const v1::ScoreSummary*>& scores,
                                              const std::vector<int>& pool, double fraction);

// SHARES. Linear l keeps apart the share r_l ∝ (absolute_sum / weights)^exponent with
// Σ r_l weights_l = fraction Σ weights_l; a share above kLargestShare is cut there and the excess
// goes to the others in their proportion. Scores that are all 0: the same share for all.
// INTERNAL: a sum that is not finite.
inline constexpr double kLargestShare = 0.5;
absl::StatusOr<v1::Decision> DecideShares(const std::vector<const v1::ScoreSummary*>& scores,
                                          double fraction, double exponent);

// SHRINKAGE. The variant with the lowest loss of its node; variant 0 (uncoupled) unless another one
// is strictly lower. numbers["shrinkage"]; node_loss in nats per token. Losses that are not finite
// never win. INTERNAL: losses and variants differ in number.
absl::StatusOr<v1::Decision> DecideShrinkage(const std::vector<std::string>& linears,
                                             const std::vector<Variant>& variants,
                                             const v1::TaskResult& loss);

// WIDTHS. Of each linear the shards of its variants; linears that share a width stand together in
// `tied`. INTERNAL: a linear without any price.
struct PricedLinear {
  std::string name;
  std::vector<const v1::ShardSummary*> shards;  // by variant
  int tied = 0;                                 // same number: same width
};
absl::StatusOr<WidthFrontier> FrontierOf(const std::vector<PricedLinear>& linears);
// The best widths under `average_bits` stored bits per weight. numbers["average_bits"],
// numbers["predicted_loss_increase"]. INVALID_ARGUMENT: below the least that the shards allow.
absl::StatusOr<v1::Decision> DecideWidths(const std::vector<PricedLinear>& linears,
                                          double average_bits);

}  // namespace gradq
