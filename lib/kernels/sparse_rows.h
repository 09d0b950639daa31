#pragma once

// The sparse part of a packed matrix: fp16 values that are added to single weights (FORMAT.md
// "outliers"). LutMatrix and AffineMatrix carry one and fold it into their passes; nobody
// multiplies with it alone but benchmarks and oracles. Immutable; any number of readers.

#include <cstdint>
#include <span>
#include <vector>

#include "lib/kernels/float16.h"

namespace gradq::kernels {

class SparseRows {
 public:
  // Columns that the 16-bit columns of one run reach.
  static constexpr int64_t kRun = int64_t{1} << 16;

  SparseRows() = default;
  // `row_ptr` [out · ceil(in / kRun) + 1] from 0 to the number of entries, `col` ascending within a
  // run, `value` fp16 bits; copied. The caller has checked them. Empty spans: no entries.
  SparseRows(std::span<const int32_t> row_ptr, std::span<const uint16_t> col,
             std::span<const uint16_t> value, int64_t in_features);

  bool empty() const { return entries_ == 0; }
  int64_t entries() const { return entries_; }
  // Runs per row.
  int64_t runs() const { return runs_; }
  // Entries of run k of row r: row_ptr(r)[k] .. row_ptr(r)[k + 1] - 1 of col() and value().
  const int32_t* row_ptr(int64_t r) const { return row_ptr_.data() + r * runs_; }
  // Readable for one vector beyond the last entry.
  const uint16_t* col() const { return col_.data(); }
  const uint16_t* value() const { return value_.data(); }
  // Memory held.
  int64_t bytes() const;

  // Calls use(column, value) for the entries of row r in order.
  template <typename Use>
  void ForRow(int64_t r, const Use& use) const {
    for (int64_t run = 0; run < runs_; ++run) {
      for (int64_t i = row_ptr(r)[run]; i < row_ptr(r)[run + 1]; ++i)
        use(run * kRun + col_[i], Float16ToFloat(value_[i]));
    }
  }
  // Adds row r to `weights` [in].
  void AddRow(int64_t r, float* weights) const;

 private:
  int64_t entries_ = 0;
  int64_t runs_ = 0;
  std::vector<int32_t> row_ptr_;
  std::vector<uint16_t> col_;
  std::vector<uint16_t> value_;
};

}  // namespace gradq::kernels
