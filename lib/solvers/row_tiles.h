#pragma once

// Cuts the rows of a linear into the tiles that solvers hand out as tasks. The cut follows from the
// shape alone, never from the number of threads.

#include <cstdint>
#include <vector>

#include "lib/catalog/groups.h"

namespace gradq {

// Rows first .. first + rows − 1 of channel group `group`, rows ≤ kernels::kTileRows.
struct RowRange {
  int group = 0;
  int64_t first = 0;
  int rows = 0;
};

// In order; no tile crosses a group.
std::vector<RowRange> CutRows(const GroupPartition& groups);

// Σ_k (1/|J_k|) Σ_{j∈J_k} forms[j], in fp64 with fixed order: an objective from its rows' δᵀHδ.
double SumOfGroupMeans(const GroupPartition& groups, const std::vector<double>& forms);

}  // namespace gradq
