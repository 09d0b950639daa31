#pragma once

// Assignment kernels of LNQ on a tile of rows that share one matrix H: coordinate descent,
// error-feedback rounding and the quadratic form. Called by lib/solvers, one tile per task; no
// state, no threads inside. A tile holds kTileRows rows transposed, so that rows lie in SIMD lanes
// and no sum crosses them: a row's result depends on nothing but its own numbers, whatever tile or
// lane it sits in. The products (ŵ−w)·H run over panels of kPanelColumns columns, always from k = 0
// upwards in fused multiply-adds; the plain version (namespace reference) gives the same bits on
// machines with FMA.

#include <cstdint>

#include "lib/kernels/aligned_floats.h"

namespace gradq::kernels {

inline constexpr int kTileRows = 32;
inline constexpr int kPanelColumns = 12;

// A square matrix cut into panels [ceil(d/12)][d][12]: panel p holds columns 12p..12p+11 of every
// row, zeros beyond the last column. 64-byte aligned.
class PanelMatrix {
 public:
  PanelMatrix() = default;
  // `matrix`: row-major [columns, columns].
  PanelMatrix(const float* matrix, int64_t columns);

  int64_t columns() const { return columns_; }
  int64_t panels() const { return (columns_ + kPanelColumns - 1) / kPanelColumns; }
  const float* panel(int64_t index) const {
    return storage_.data() + index * columns_ * kPanelColumns;
  }

 private:
  int64_t columns_ = 0;
  AlignedFloats storage_;
};

// Pointers to one tile; all arrays are [length][kTileRows] fp32, 64-byte aligned. Rows that don't
// exist hold zeros.
struct RowTile {
  const float* weight = nullptr;  // w, [columns]
  float* error = nullptr;         // ŵ − w, [columns]
  int levels = 0;                 // 2^bits
  const float* table = nullptr;   // codewords, ascending in each row, [levels]
  const float* midpoint =
      nullptr;  // (c_q + c_{q+1}) / 2, [levels - 1]; a tie goes to the lower codeword
  // [columns]: 1, or 0 for a weight kept apart, whose error every kernel leaves at 0; null: all 1.
  const float* active = nullptr;
};

// One pass over all columns: ŵ_j ← the codeword nearest to ŵ_j − (E·H)_j / H_jj, each column seeing
// those before it (GuidedQuant's update_P). `inverse_diagonal[j]` = 1 / H_jj, or 0 for a dead
// input, whose weight then stays as it is. `decrease` (may be null) [kTileRows] receives how much
// δᵀHδ fell, in fp32. False when nothing changed in the tile.
bool CoordinateDescentCycle(const PanelMatrix& h, const float* inverse_diagonal,
                            const RowTile& tile, float* decrease);

// Rounds the columns in the order `order` [columns], each to the codeword nearest to w_j − Σ_{i
// before j} e_i U_ij, with H = (U)D(U)ᵀ, U unit upper triangular in that order (LDLQ; the same as
// GPTQ). `feedback` holds U with both indices in `order`'s positions.
void ErrorFeedbackRounding(const PanelMatrix& feedback, const int32_t* order, const RowTile& tile);

// δᵀHδ of every row, the products in fp32, their sum in fp64.
void QuadraticForms(const PanelMatrix& h, const float* error, double* forms);

// The same in fp64 throughout: what is reported.
void ExactQuadraticForms(const PanelMatrix& h, const float* error, double* forms);

// error ← nearest codeword − weight, and its index into codes [columns][kTileRows] when that is not
// null (also of weights kept apart). `target`: null for w itself, else [columns][kTileRows].
void RoundToNearest(int64_t columns, const RowTile& tile, const float* target, uint8_t* codes);

namespace reference {
bool CoordinateDescentCycle(const PanelMatrix& h, const float* inverse_diagonal,
                            const RowTile& tile, float* decrease);
void ErrorFeedbackRounding(const PanelMatrix& feedback, const int32_t* order, const RowTile& tile);
void QuadraticForms(const PanelMatrix& h, const float* error, double* forms);
void ExactQuadraticForms(const PanelMatrix& h, const float* error, double* forms);
}  // namespace reference

}  // namespace gradq::kernels
