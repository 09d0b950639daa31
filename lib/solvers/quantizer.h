#pragma once

// Binds each row of lib/catalog/quantizers.h to its solve function, in an explicit table.

#include <span>

#include "lib/catalog/recipe.h"
#include "lib/solvers/layer_problem.h"

namespace gradq {

struct QuantizerBinding {
  std::string_view name;
  // A result with name, sizes and record filled in, deterministic for any pool size. CANCELLED;
  // INVALID_ARGUMENT (a value fp16 can't hold; non-finite weights or statistics), each naming the
  // linear.
  absl::StatusOr<QuantizedLinear> (*solve)(const LayerProblem& problem,
                                           const SolveContext& context);
  // The same for several shrinkages of the coupled objective, whatever problem.shrinkage is; null
  // for methods without one.
  absl::StatusOr<std::vector<QuantizedLinear>> (*solve_shrinkages)(
      const LayerProblem& problem, std::span<const double> shrinkages,
      const SolveContext& context) = nullptr;
};

std::span<const QuantizerBinding> QuantizerBindings();

// Looks the method up, lets the outlier policy choose, solves, stores the weights kept apart, fills
// in record.predicted_loss_increase where fisher_blocks exist, validates. Both are then of the
// dense part and the outliers together. INVALID_ARGUMENT also when fp16 can't hold an outlier.
absl::StatusOr<QuantizedLinear> SolveLayer(std::string_view method, const LayerProblem& problem,
                                           const SolveContext& context);

// One result per variant, whose width and shrinkage take the place of the problem's; what several
// of them share (the uncoupled solution of a width) is solved once. Otherwise as SolveLayer.
absl::StatusOr<std::vector<QuantizedLinear>> SolveVariants(std::string_view method,
                                                           const LayerProblem& problem,
                                                           std::span<const Variant> variants,
                                                           const SolveContext& context);

// Σ_k (1/|J_k|) Σ_{j∈J_k} δ_jᵀ H_k δ_j, in fp64 with fixed order; `quantized` fp32 [out, in]; one
// matrix for all groups when matrices.size() is 1 and groups is not (plain). Also the mean per
// group when `per_group` is given.
double LayerObjective(const LayerProblem& problem, std::span<const at::Tensor> matrices,
                      const at::Tensor& quantized, ThreadPool* pool,
                      std::vector<double>* per_group = nullptr);

}  // namespace gradq
