#pragma once

// Binds each row of lib/catalog/outlier_policies.h to its functions, in an explicit table. A policy
// says which weights stay apart in fp16; SolveLayer hands the mask to the quantizer. Compute
// thread.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/options.h"
#include "lib/solvers/layer_problem.h"

namespace gradq {

struct OutlierPolicyBinding {
  std::string_view name;
  // A score per weight [out, in], not negative: the higher, the sooner it is kept apart. May run a
  // preliminary solve of `method` for ŵ. nullptr for policies whose choice is no ranking by one
  // score.
  absl::StatusOr<std::vector<float>> (*score)(std::string_view method, const LayerProblem& problem,
                                              const OptionMap& options,
                                              const SolveContext& context);
  // The mask [out, in] (LayerProblem::apart); may add to record numbers ("outlier_threshold").
  absl::StatusOr<std::vector<uint8_t>> (*choose)(std::string_view method,
                                                 const LayerProblem& problem,
                                                 const OptionMap& options,
                                                 const OutlierDecision& decision,
                                                 const SolveContext& context, SolveRecord* record);
};

std::span<const OutlierPolicyBinding> OutlierPolicyBindings();

// floor(fraction · weights + ½), at most all of them.
int64_t OutlierCount(double fraction, int64_t weights);
// The mask of the `count` largest scores; of equal ones the first in row-major order.
std::vector<uint8_t> TopScores(std::span<const float> scores, int64_t count);
// The mask of the scores not below `threshold`.
std::vector<uint8_t> ScoresFrom(std::span<const float> scores, double threshold);
// The least score that the mask takes; infinite when it takes none.
double LeastChosen(std::span<const float> scores, std::span<const uint8_t> mask);

}  // namespace gradq
