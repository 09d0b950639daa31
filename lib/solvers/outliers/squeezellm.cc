// Dense-and-sparse (SqueezeLLM, arXiv:2306.07629): first the most sensitive weights, then the
// largest ones. The published code tunes a factor of the interquartile range until the model has
// the wanted share; here each linear has it exactly, which is one rule less to tune.

#include <algorithm>
#include <cmath>

#include "lib/solvers/outliers/policies.h"

namespace gradq {

absl::StatusOr<std::vector<uint8_t>> ChooseSqueezellm(std::string_view, const LayerProblem& problem,
                                                      const OptionMap& options,
                                                      const OutlierDecision&, const SolveContext&,
                                                      SolveRecord* record) {
  const int64_t weights = problem.weight.numel();
  const int64_t count = OutlierCount(OptionDouble(options, "fraction"), weights);
  if (count == 0) return std::vector<uint8_t>();
  const int64_t sensitive =
      std::min(count, OutlierCount(OptionDouble(options, "sensitive_fraction"), weights));
  std::vector<uint8_t> apart = TopScores(
      {problem.fisher_diagonal.const_data_ptr<float>(), static_cast<size_t>(weights)}, sensitive);
  const float* weight = problem.weight.const_data_ptr<float>();
  std::vector<float> size(weights);
  // Below every size: those already apart.
  for (int64_t i = 0; i < weights; ++i) size[i] = apart[i] != 0 ? -1.0f : std::fabs(weight[i]);
  const std::vector<uint8_t> large = TopScores(size, count - sensitive);
  for (int64_t i = 0; i < weights; ++i) apart[i] |= large[i];
  record->numbers["sensitive_outliers"] = static_cast<double>(sensitive);
  record->numbers["range_outliers"] = static_cast<double>(count - sensitive);
  if (count > sensitive) record->numbers["outlier_threshold"] = LeastChosen(size, large);
  return apart;
}

}  // namespace gradq
