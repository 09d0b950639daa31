#pragma once

// What all shrinkages of one linear share in the coupled objective: the factors of O ⊗ M. Made once
// per linear by the quantizer, then read by all threads. docs/coupled.md derives it.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/solvers/layer_problem.h"
#include "lib/solvers/lnq_group.h"

namespace gradq {

// E_a(Δ) = (1 − a) · tr(O Δ M Δᵀ) + a · Σ_j O_jj δ_jᵀ H_k(j) δ_j: between the whole Kronecker model
// (a = 0) and the guided objective with a weight per row (a = 1). Both parts are positive
// semidefinite, so every a in [0, 1] is. H_k: the Fisher blocks, scaled to the same trace; M their
// mean over the rows.
struct CoupledModel {
  int64_t rows = 0;
  int64_t columns = 0;
  GroupPartition groups;
  std::vector<float> output;            // O [rows, rows], scaled to mean diagonal 1
  std::vector<float> shared;            // M [columns, columns]
  std::vector<std::vector<float>> own;  // N_k = H_k − M; empty with one group, where they are 0
  // Of M. Shared with the uncoupled solve where that has a single group, whose matrix M is.
  std::shared_ptr<const LnqGroup> feedback;

  float diagonal(int64_t row) const { return output[row * rows + row]; }
};

// Of problem.fisher_blocks and problem.output_fisher, which have been checked. `single`: the group
// of the problem's only Fisher block, or null. INVALID_ARGUMENT as PrepareLnqGroup.
absl::StatusOr<CoupledModel> PrepareCoupledModel(const LayerProblem& problem,
                                                 const LnqSettings& settings,
                                                 std::shared_ptr<const LnqGroup> single,
                                                 ThreadPool* pool);

}  // namespace gradq
