#pragma once

// The functions of the outlier policies, one policy per file; bound to their catalog rows in
// lib/solvers/outlier_policy.cc. Contracts: OutlierPolicyBinding.

#include "lib/solvers/outlier_policy.h"

namespace gradq {

// Gradients of few sequences (arXiv:2411.00850, a reconstruction).
absl::StatusOr<std::vector<float>> GwqScores(std::string_view method, const LayerProblem& problem,
                                             const OptionMap& options, const SolveContext& context);
absl::StatusOr<std::vector<uint8_t>> ChooseGwq(std::string_view method, const LayerProblem& problem,
                                               const OptionMap& options,
                                               const OutlierDecision& decision,
                                               const SolveContext& context, SolveRecord* record);

// Sensitive weights, then large ones (arXiv:2306.07629).
absl::StatusOr<std::vector<uint8_t>> ChooseSqueezellm(
    std::string_view method, const LayerProblem& problem, const OptionMap& options,
    const OutlierDecision& decision, const SolveContext& context, SolveRecord* record);

// ReQuant's outliers: the decided share of this linear, by size (arXiv:2503.01901, a
// reconstruction).
absl::StatusOr<std::vector<uint8_t>> ChoosePqi(std::string_view method, const LayerProblem& problem,
                                               const OptionMap& options,
                                               const OutlierDecision& decision,
                                               const SolveContext& context, SolveRecord* record);

}  // namespace gradq
