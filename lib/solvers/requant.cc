#include "lib/solvers/requant.h"

#include <algorithm>
#include <cmath>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {

std::vector<float> PqiScores(std::span<const float> weights, std::span<const float> quantized,
                             std::span<const float> gradient_sum, int64_t sequences) {
  GRADQ_CHECK(quantized.size() == weights.size() && gradient_sum.size() == weights.size());
  std::vector<float> scores(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double way = static_cast<double>(quantized[i]) - weights[i];
    scores[i] = static_cast<float>(way * gradient_sum[i] / static_cast<double>(sequences));
  }
  return scores;
}

std::vector<uint8_t> ApartMask(const QuantizedLinear& linear) {
  const SparseOutliers& outliers = linear.outliers;
  if (outliers.empty()) return {};
  std::vector<uint8_t> mask(linear.weights(), 0);
  constexpr int64_t kChunk = 65536;
  const int64_t chunks = (linear.in_features + kChunk - 1) / kChunk;
  for (int64_t part = 0; part < linear.out_features * chunks; ++part) {
    const int64_t first = part / chunks * linear.in_features + part % chunks * kChunk;
    for (int32_t i = outliers.row_ptr[part]; i < outliers.row_ptr[part + 1]; ++i) {
      mask[first + outliers.col[i]] = 1;
    }
  }
  return mask;
}

absl::Status DetachOutliers(std::span<const float> weights, std::span<const float> scores,
                            double threshold, QuantizedLinear* linear) {
  const size_t count = static_cast<size_t>(linear->weights());
  if (weights.size() != count || scores.size() != count) {
    return absl::InvalidArgumentError(
        StrCat(linear->name, ": weights or scores of another size: ", weights.size(), ", ",
               scores.size(), ", expected ", count));
  }
  std::vector<uint8_t> apart = ApartMask(*linear);
  apart.resize(count, 0);
  int64_t detached = 0;
  for (size_t i = 0; i < count; ++i) {
    if (apart[i] != 0 || !(static_cast<double>(scores[i]) >= threshold)) continue;
    apart[i] = 1;
    ++detached;
  }
  // The values of those already there come out as they were: w and the dense part are the same.
  GRADQ_RETURN_IF_ERROR(SetOutliers(weights, apart, linear));
  SolveRecord& record = linear->record;
  record.numbers["outliers"] = static_cast<double>(linear->outliers.col.size());
  record.numbers["detached"] += static_cast<double>(detached);
  if (std::isfinite(threshold)) record.numbers["detach_threshold"] = threshold;
  record.objective_final.reset();
  record.predicted_loss_increase.reset();
  return absl::OkStatus();
}

}  // namespace gradq
