#pragma once

// Cuts the rows of a linear into the tiles that solvers hand out as tasks. The cut follows from the
// shape alone, never from the number of threads.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "lib/base/thread_pool.h"
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

// The first of `statuses` that is not OK, with `name` in front.
absl::Status FirstError(const std::vector<absl::Status>& statuses, const std::string& name);

// Calls solve(tile, range) for the ranges of CutRows on the pool, with one Tile (scratch) per
// thread, made by `make` when the thread first needs it. The first error in order of the ranges,
// with `name`, the linear, in front.
template <typename Tile>
absl::Status SolveRowTiles(const GroupPartition& groups, const std::string& name, ThreadPool* pool,
                           absl::FunctionRef<std::unique_ptr<Tile>()> make,
                           absl::FunctionRef<absl::Status(Tile&, const RowRange&)> solve) {
  const std::vector<RowRange> ranges = CutRows(groups);
  std::vector<std::unique_ptr<Tile>> tiles(pool->threads());
  std::vector<absl::Status> statuses(ranges.size());
  pool->ParallelFor(static_cast<int64_t>(ranges.size()), [&](int64_t index, int worker) {
    if (tiles[worker] == nullptr) tiles[worker] = make();
    statuses[index] = solve(*tiles[worker], ranges[index]);
  });
  return FirstError(statuses, name);
}

// Σ_k (1/|J_k|) Σ_{j∈J_k} forms[j], in fp64 with fixed order: an objective from its rows' δᵀHδ.
double SumOfGroupMeans(const GroupPartition& groups, const std::vector<double>& forms);

}  // namespace gradq
