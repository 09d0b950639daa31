#include "lib/solvers/score_summary.h"

#include <cmath>

#include "lib/base/strings.h"
#include "lib/catalog/log_buckets.h"

namespace gradq {

absl::StatusOr<ScoreSummary> SummarizeScores(std::span<const float> scores,
                                             std::span<const uint8_t> apart) {
  // Of a float: from 2^-149 to below 2^128.
  constexpr int kLowest = -149 * 64, kBuckets = (149 + 128) * 64;
  std::vector<int64_t> counts(kBuckets);
  ScoreSummary summary;
  summary.weights = static_cast<int64_t>(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const double score = scores[i];
    const double size = std::fabs(score);
    if (!std::isfinite(size)) {
      return absl::InvalidArgumentError(StrCat("score of a weight is not finite: weight ", i));
    }
    summary.signed_sum += score;
    summary.absolute_sum += size;
    if (score <= 0 || (!apart.empty() && apart[i] != 0)) continue;
    ++counts[LogBucket(score) - kLowest];
  }
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    if (counts[bucket] == 0) continue;
    summary.bucket.push_back(bucket + kLowest);
    summary.count.push_back(counts[bucket]);
  }
  return summary;
}

}  // namespace gradq
