#include "lib/inference/fuse_rows.h"

#include <cstdint>
#include <limits>
#include <vector>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

template <typename T>
void AppendTo(std::vector<T>* all, const std::vector<T>& more) {
  all->insert(all->end(), more.begin(), more.end());
}

void AppendOutliers(const QuantizedLinear& linear, SparseOutliers* all) {
  const auto before = static_cast<int32_t>(all->col.size());
  const int64_t rows = linear.out_features * OutlierChunks(linear.in_features);
  if (all->row_ptr.empty()) all->row_ptr.push_back(0);
  for (int64_t i = 1; i <= rows; ++i) {
    const int32_t entries = linear.outliers.empty() ? 0 : linear.outliers.row_ptr[i];
    all->row_ptr.push_back(before + entries);
  }
  AppendTo(&all->col, linear.outliers.col);
  AppendTo(&all->value, linear.outliers.value);
}

size_t Outliers(std::span<const QuantizedLinear> linears) {
  size_t count = 0;
  for (const QuantizedLinear& linear : linears) count += linear.outliers.col.size();
  return count;
}

}  // namespace

bool CanFuseRows(std::span<const QuantizedLinear> linears) {
  const QuantizedLinear& first = linears.front();
  for (const QuantizedLinear& linear : linears) {
    if (linear.encoding != first.encoding || linear.bits != first.bits ||
        linear.group_size != first.group_size || linear.in_features != first.in_features) {
      return false;
    }
  }
  // Places of outliers are 32-bit numbers.
  return Outliers(linears) <= size_t{std::numeric_limits<int32_t>::max()};
}

QuantizedLinear FuseRows(std::span<const QuantizedLinear> linears) {
  GRADQ_CHECK(!linears.empty() && CanFuseRows(linears));
  QuantizedLinear fused;
  fused.name = linears.front().name;
  fused.encoding = linears.front().encoding;
  fused.bits = linears.front().bits;
  fused.group_size = linears.front().group_size;
  fused.in_features = linears.front().in_features;
  const bool outliers = Outliers(linears) > 0;
  for (const QuantizedLinear& linear : linears) {
    fused.out_features += linear.out_features;
    AppendTo(&fused.packed, linear.packed);
    AppendTo(&fused.lut, linear.lut);
    AppendTo(&fused.scale, linear.scale);
    AppendTo(&fused.zero_point, linear.zero_point);
    if (outliers) AppendOutliers(linear, &fused.outliers);
  }
  return fused;
}

}  // namespace gradq
