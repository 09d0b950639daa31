#pragma once

// Error-feedback rounding (GPTQ, arXiv:2210.17323; the same as LDLQ) of a range of columns on a
// tile of rows laid out as in coordinate_descent.h. Called by lib/solvers for quantizers that need
// more than one codebook per row or keep weights apart; no state, no threads inside. With H = U D
// Uᵀ, U unit upper triangular in the order of the sweep, and e = ŵ − w against the *original*
// weights, the column at position p aims at w_p − Σ_{i < p} e_i U_ip: the minimum of δᵀHδ over it
// and all later columns. Sums run from i = 0 upwards in fused multiply-adds, rows lie in SIMD
// lanes, so a row's result does not depend on its neighbours; namespace reference gives the same
// bits.

#include <cstdint>

#include "lib/kernels/coordinate_descent.h"

namespace gradq::kernels {

// Arrays [columns][kTileRows], 64-byte aligned, indexed by column (not by position).
struct SweepTile {
  const float* weight = nullptr;
  // ŵ − w; of the positions before the range on entry, of the range on return.
  float* error = nullptr;
  // 1, or 0 for a weight kept apart, whose error is 0 whatever its code; null: none is.
  const float* active = nullptr;
  // Of the range, on return; of weights kept apart undefined. Not used by UnroundedSweep.
  uint8_t* codes = nullptr;
};

// ŵ = (code − zero) · scale with code = round((target / scale) + zero), ties to even, within
// [0, highest]; [grids][kTileRows] each. Scales are positive, zeros whole numbers.
struct AffineGrids {
  int highest = 0;
  const float* scale = nullptr;
  const float* zero = nullptr;
  const int32_t* grid = nullptr;  // of each column
};

// One codebook per row as in RowTile; a tie goes to the lower codeword.
struct RowCodebooks {
  int levels = 0;
  const float* table = nullptr;     // ascending, [levels][kTileRows]
  const float* midpoint = nullptr;  // [levels − 1][kTileRows]
};

// `feedback` holds U with both indices in `order`'s positions; positions [from, to) are swept.
void AffineSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                 const AffineGrids& grids, const SweepTile& tile);
void CodebookSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                   const RowCodebooks& codebooks, const SweepTile& tile);
// Without rounding: w + e are then the weights as GPTQ has updated them when it reaches `from`.
void UnroundedSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                    const SweepTile& tile);

namespace reference {
void AffineSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                 const AffineGrids& grids, const SweepTile& tile);
void CodebookSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                   const RowCodebooks& codebooks, const SweepTile& tile);
void UnroundedSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                    const SweepTile& tile);
}  // namespace reference

}  // namespace gradq::kernels
