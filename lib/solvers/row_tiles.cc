#include "lib/solvers/row_tiles.h"

#include <algorithm>

#include "lib/base/strings.h"
#include "lib/kernels/coordinate_descent.h"

namespace gradq {

std::vector<RowRange> CutRows(const GroupPartition& groups) {
  std::vector<RowRange> tiles;
  for (int group = 0; group < groups.groups; ++group) {
    const int64_t end = groups.begin(group + 1);
    for (int64_t row = groups.begin(group); row < end; row += kernels::kTileRows) {
      tiles.push_back(
          {group, row, static_cast<int>(std::min<int64_t>(kernels::kTileRows, end - row))});
    }
  }
  return tiles;
}

absl::Status FirstError(const std::vector<absl::Status>& statuses, const std::string& name) {
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return absl::Status(status.code(), StrCat(name, ": ", status.message()));
  }
  return absl::OkStatus();
}

double SumOfGroupMeans(const GroupPartition& groups, const std::vector<double>& forms) {
  double total = 0.0;
  for (int k = 0; k < groups.groups; ++k) {
    double sum = 0.0;
    for (int64_t row = groups.begin(k); row < groups.begin(k + 1); ++row) sum += forms[row];
    total += sum / static_cast<double>(groups.size(k));
  }
  return total;
}

}  // namespace gradq
