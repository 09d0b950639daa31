// The outliers of ReQuant (PQI, arXiv:2503.01901; steps reconstructed from its tables): once the
// loss integral has said how many a linear gets, the largest weights are taken and the rest is
// quantized again. What is detached afterwards: lib/solvers/requant.h.

#include <cmath>

#include "lib/solvers/outliers/policies.h"

namespace gradq {

absl::StatusOr<std::vector<uint8_t>> ChoosePqi(std::string_view, const LayerProblem& problem,
                                               const OptionMap&, const OutlierDecision& decision,
                                               const SolveContext&, SolveRecord* record) {
  // Undecided: the solve that the first integral leads to.
  const int64_t count = OutlierCount(decision.fraction.value_or(0), problem.weight.numel());
  if (count == 0) return std::vector<uint8_t>();
  const float* weight = problem.weight.const_data_ptr<float>();
  std::vector<float> size(problem.weight.numel());
  for (size_t i = 0; i < size.size(); ++i) size[i] = std::fabs(weight[i]);
  std::vector<uint8_t> apart = TopScores(size, count);
  record->numbers["outlier_threshold"] = LeastChosen(size, apart);
  return apart;
}

}  // namespace gradq
