#pragma once

// Packed lower triangles of symmetric matrices, row by row: element (i, j), j ≤ i, lies at i(i+1)/2
// + j.

#include <cstdint>

namespace gradq::kernels {

constexpr int64_t TriangleSize(int64_t order) { return order * (order + 1) / 2; }
// Where row `row` starts.
constexpr int64_t TriangleRow(int64_t row) { return row * (row + 1) / 2; }

// packed [TriangleSize(order)] -> full [order, order].
inline void UnfoldTriangle(const float* packed, int64_t order, float* full) {
  for (int64_t i = 0; i < order; ++i) {
    const float* row = packed + TriangleRow(i);
    for (int64_t j = 0; j <= i; ++j) {
      full[i * order + j] = row[j];
      full[j * order + i] = row[j];
    }
  }
}

// Keeps the lower triangle of full [order, order].
inline void FoldTriangle(const float* full, int64_t order, float* packed) {
  for (int64_t i = 0; i < order; ++i) {
    float* row = packed + TriangleRow(i);
    for (int64_t j = 0; j <= i; ++j) row[j] = full[i * order + j];
  }
}

}  // namespace gradq::kernels
