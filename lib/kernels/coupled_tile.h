#pragma once

// Arithmetic of the coupled LNQ solver (lib/solvers/coupled_descent.h), whose objective is
// tr(O Δ M Δᵀ) with Δ = Ŵ − W [rows, columns] and symmetric O [rows, rows], M [columns, columns]:
// products with a fixed order of sums, and two-sided coordinate descent inside one tile of rows ×
// columns. No state, no threads inside; every element is one chain of fused multiply-adds, so
// results depend on neither vector width nor thread. The plain versions (namespace reference) are
// the oracles of the tests.

#include <cstdint>

namespace gradq::kernels {

// Rows and columns of a tile, at most. A tile is what one thread descends in at a time.
inline constexpr int kCoupledTile = 32;

// c [rows, width] (+)= a [rows, depth] · b [depth, width], row-major with strides; every element
// adds up from depth 0 on, starting from c or from 0.
void MultiplyAdd(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
                 int64_t depth, int64_t width, bool accumulate, float* c, int64_t c_stride);

// y [n] += factor · x.
void AddScaled(float factor, const float* x, int64_t n, float* y);

// sums [width] = Σ over k < count of row rows[k] of `matrix`, in that order.
void SumRows(const float* matrix, int64_t stride, const int32_t* rows, int count, int64_t width,
             float* sums);

// Pointers to the upper left corner of one tile in the matrices of a linear.
struct CoupledTile {
  int rows = 0;
  int columns = 0;
  const float* weight = nullptr;   // w, stride `stride`
  float* error = nullptr;          // Δ, the same
  uint8_t* codes = nullptr;        // the same
  const uint8_t* apart = nullptr;  // the same; not 0: the weight stays as it is. Null: none
  int64_t stride = 0;
  const float* table = nullptr;  // codewords, ascending, [rows][levels]
  int levels = 0;
  // (O Δ M) and the own part, [rows][kCoupledTile]; kept up to date for the tile's elements.
  float* gradient = nullptr;
  const float* output = nullptr;  // O unshrunk, [rows, rows] at stride `output_stride`
  int64_t output_stride = 0;
  float coupling = 0;             // 1 − a: of O's elements off the diagonal
  const float* shared = nullptr;  // M [columns, columns] at stride `shared_stride`
  int64_t shared_stride = 0;
  // What a row has beyond O ⊗ M: a · O_jj · N_k with its group's N_k [columns, columns], laid out
  // as M. [rows] pointers; null: nothing.
  const float* const* own = nullptr;
  float own_factor = 0;    // a
  float* moved = nullptr;  // change of Δ, [rows][kCoupledTile], zeros on entry
};

// One pass over the tile, columns outer, rows inner: ŵ_ji ← the codeword nearest to ŵ_ji − g_ji /
// h_ji with the gradient g of the objective (halved) and the curvature h_ji = O_jj (M_ii + a N_ii);
// where h is not positive the weight stays. Returns how many weights changed.
int64_t DescendTile(const CoupledTile& tile);

namespace reference {
void MultiplyAdd(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
                 int64_t depth, int64_t width, bool accumulate, float* c, int64_t c_stride);
int64_t DescendTile(const CoupledTile& tile);
}  // namespace reference

}  // namespace gradq::kernels
