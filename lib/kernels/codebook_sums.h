#pragma once

// Sums over the entries of H that share a codeword: the normal equations of LNQ's codebook step for
// one row. Called by lib/solvers, row by row; no state, no threads inside.

#include <cstdint>

namespace gradq::kernels {

// With P [columns, levels] the one-hot assignment of a row and e = ŵ − w:
//   gram[q][p] = (PᵀHP)_qp  and  slope[q] = (PᵀH e)_q,
// `h` row-major [columns, columns], symmetric. `order` lists the columns bucket by bucket, codeword
// q's from begin[q] to begin[q + 1]; `codes` is the same the other way round. Sums over H in fp32
// down a column of each bucket, everything else in fp64. `scratch`: levels · kCodebookChunk floats.
// Weights kept apart are in no bucket, their error is 0 and `active` [columns] is 0 for them, else
// 1; null: there are none.
inline constexpr int kCodebookChunk = 128;
void CodebookSums(const float* h, int64_t columns, const int32_t* order, const int32_t* begin,
                  const uint8_t* codes, const float* error, const float* active, int levels,
                  float* scratch, double* gram, double* slope);

}  // namespace gradq::kernels
