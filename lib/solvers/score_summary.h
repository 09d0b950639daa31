#pragma once

// Scores of one linear as a small histogram that others can be added to: what a ScoreLinear task
// sends to the coordinator in place of the scores. Plain values, no libtorch. Any thread.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

// Fields as in v1.ScoreSummary.
struct ScoreSummary {
  int64_t weights = 0;
  double signed_sum = 0;
  double absolute_sum = 0;
  std::vector<int32_t> bucket;  // LogBucket of the positive scores, rising, without empty ones
  std::vector<int64_t> count;
};

// Of scores with a sign or without one. Sums in fp64, in order, over all of them; the histogram has
// what a threshold can take: positive scores of weights that are not `apart` already (not 0; empty:
// none). INVALID_ARGUMENT when a score is not finite.
absl::StatusOr<ScoreSummary> SummarizeScores(std::span<const float> scores,
                                             std::span<const uint8_t> apart);

}  // namespace gradq
