// GWQ (arXiv:2411.00850) as far as its abstract tells: the weights with the largest gradient of the
// loss on one calibration sequence stay apart. The other scores are ours, for comparison at the
// same budget: a gradient says nothing of how far a weight will be moved.

#include <cmath>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/solvers/outliers/policies.h"
#include "lib/solvers/quantizer.h"

namespace gradq {
namespace {

// ŵ − w of the method without outliers.
absl::StatusOr<std::vector<float>> PreliminaryErrors(std::string_view method,
                                                     const LayerProblem& problem,
                                                     const SolveContext& context) {
  LayerProblem dense = problem;
  dense.apart.clear();
  dense.outliers = "none";
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear solved, SolveLayer(method, dense, context));
  std::vector<float> errors = Dequantize(solved);
  const float* weight = problem.weight.const_data_ptr<float>();
  for (size_t i = 0; i < errors.size(); ++i) errors[i] -= weight[i];
  return errors;
}

}  // namespace

absl::StatusOr<std::vector<float>> GwqScores(std::string_view method, const LayerProblem& problem,
                                             const OptionMap& options,
                                             const SolveContext& context) {
  const std::string& score = OptionWord(options, "score");
  const int64_t count = problem.weight.numel();
  std::vector<float> scores(count);
  if (score == "gradient" || score == "magnitude") {
    const at::Tensor& ranked = score == "gradient" ? problem.weight_gradient : problem.weight;
    const float* values = ranked.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) scores[i] = std::fabs(values[i]);
    return scores;
  }
  GRADQ_ASSIGN_OR_RETURN(const std::vector<float> errors,
                         PreliminaryErrors(method, problem, context));
  if (score == "gradient_delta") {
    const float* gradient = problem.weight_gradient.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) scores[i] = std::fabs(gradient[i] * errors[i]);
    return scores;
  }
  GRADQ_CHECK(score == "fisher_delta");
  const float* fisher = problem.fisher_diagonal.const_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) scores[i] = fisher[i] * (errors[i] * errors[i]);
  return scores;
}

absl::StatusOr<std::vector<uint8_t>> ChooseGwq(std::string_view method, const LayerProblem& problem,
                                               const OptionMap& options,
                                               const OutlierDecision& decision,
                                               const SolveContext& context, SolveRecord* record) {
  const int64_t count = OutlierCount(OptionDouble(options, "fraction"), problem.weight.numel());
  const bool decided = OptionWord(options, "scope") != "linear";
  if (decided && !decision.threshold.has_value()) {
    return absl::InvalidArgumentError(StrCat(problem.name,
                                             ": no threshold was decided for gwq with scope ",
                                             OptionWord(options, "scope")));
  }
  if (!decided && count == 0) return std::vector<uint8_t>();
  GRADQ_ASSIGN_OR_RETURN(const std::vector<float> scores,
                         GwqScores(method, problem, options, context));
  std::vector<uint8_t> apart =
      decided ? ScoresFrom(scores, *decision.threshold) : TopScores(scores, count);
  const double threshold = decided ? *decision.threshold : LeastChosen(scores, apart);
  if (std::isfinite(threshold)) record->numbers["outlier_threshold"] = threshold;
  return apart;
}

}  // namespace gradq
