#include "lib/kernels/sparse_rows.h"

#include "lib/base/status_macros.h"

namespace gradq::kernels {
namespace {

// A vector of 16 entries may begin at the last one.
constexpr int64_t kPad = 16;

}  // namespace

SparseRows::SparseRows(std::span<const int32_t> row_ptr, std::span<const uint16_t> col,
                       std::span<const uint16_t> value, int64_t in_features)
    : entries_(static_cast<int64_t>(col.size())),
      runs_(col.empty() ? 0 : (in_features + kRun - 1) / kRun),
      row_ptr_(row_ptr.begin(), row_ptr.end()),
      col_(col.begin(), col.end()),
      value_(value.begin(), value.end()) {
  GRADQ_CHECK(value.size() == col.size());
  GRADQ_CHECK(col.empty() || (!row_ptr.empty() && row_ptr.back() == entries_));
  if (empty()) return;
  col_.resize(col_.size() + kPad);
  value_.resize(value_.size() + kPad);
}

int64_t SparseRows::bytes() const {
  return static_cast<int64_t>(row_ptr_.size() * sizeof(int32_t)) +
         entries_ * int64_t{2 * sizeof(uint16_t)};
}

void SparseRows::AddRow(int64_t r, float* weights) const {
  ForRow(r, [&](int64_t column, float value) { weights[column] += value; });
}

}  // namespace gradq::kernels
