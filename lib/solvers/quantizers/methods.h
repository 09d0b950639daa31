#pragma once

// The solve functions of the quantizers, one per file; bound to their catalog rows in
// lib/solvers/quantizer.cc. Contract: QuantizerBinding::solve.

#include <memory>
#include <vector>

#include "lib/solvers/lnq_group.h"
#include "lib/solvers/quantizer.h"

namespace gradq {

// Affine round to nearest, min-max per group of input weights.
absl::StatusOr<QuantizedLinear> SolveRtn(const LayerProblem& problem, const SolveContext& context);

// GPTQ on affine grids, plain or guided (arXiv:2210.17323).
absl::StatusOr<QuantizedLinear> SolveGptq(const LayerProblem& problem, const SolveContext& context);

// GPTVQ with a codebook of single weights per row, plain or guided (arXiv:2402.15319).
absl::StatusOr<QuantizedLinear> SolveGptvq1d(const LayerProblem& problem,
                                             const SolveContext& context);

// A codebook per row by optimal k-means weighted with fisher_diagonal (arXiv:2306.07629).
absl::StatusOr<QuantizedLinear> SolveSqueezellm(const LayerProblem& problem,
                                                const SolveContext& context);

// Layer-wise non-uniform quantization, plain or guided (arXiv:2505.07004).
absl::StatusOr<QuantizedLinear> SolveLnq(const LayerProblem& problem, const SolveContext& context);

// The guided or plain solution of lnq whatever the objective; appends the prepared groups.
absl::StatusOr<QuantizedLinear> SolveUncoupledLnq(
    const LayerProblem& problem, const SolveContext& context,
    std::vector<std::shared_ptr<const LnqGroup>>* groups);

// lnq on the coupled objective: QuantizerBinding::solve_shrinkages.
absl::StatusOr<std::vector<QuantizedLinear>> SolveLnqShrinkages(const LayerProblem& problem,
                                                                std::span<const double> shrinkages,
                                                                const SolveContext& context);

// --solver published of lnq: the paper's algorithm from SqueezeLLM's assignment, for comparison.
absl::StatusOr<QuantizedLinear> SolveLnqPublished(const LayerProblem& problem,
                                                  const SolveContext& context);

}  // namespace gradq
