#pragma once

// y = x · Ŵᵀ from packed codes with a scale and a zero point per group of columns (FORMAT.md
// "affine"): ŵ = (code - zero point) · scale, plus sparse outliers. Beside lut_matmul.h, with the
// same rules: called from the compute thread; each output is one fixed sum over columns that
// depends on the SIMD target, never on threads, other rows or the batch.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/kernels/sparse_rows.h"

namespace gradq::kernels {

// Codes in the canonical order. Immutable; any number of readers.
class AffineMatrix {
 public:
  AffineMatrix() = default;
  // `packed` [out, ceil(in * bits / 32)], `scale` fp16 bits and `zero_point` [out, ceil(in /
  // group_size)], bits 1..8; copied. The caller has checked sizes.
  AffineMatrix(std::span<const uint32_t> packed, std::span<const uint16_t> scale,
               std::span<const uint8_t> zero_point, int64_t out_features, int64_t in_features,
               int bits, int64_t group_size);
  // Adds `sparse`, of the same sizes, to the matrix. Not while it is being read.
  void SetSparse(SparseRows sparse) { sparse_ = std::move(sparse); }

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int bits() const { return bits_; }
  int64_t group_size() const { return group_size_; }
  int64_t groups() const { return groups_; }
  const uint32_t* row(int64_t r) const { return packed_.data() + r * stride_; }
  const uint16_t* scales(int64_t r) const { return scale_.data() + r * groups_; }
  const uint8_t* zero_points(int64_t r) const { return zero_point_.data() + r * groups_; }
  // What is added to the weights of the codes.
  const SparseRows& sparse() const { return sparse_; }
  // Memory held.
  int64_t bytes() const;

 private:
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int64_t stride_ = 0;
  int64_t group_size_ = 0;
  int64_t groups_ = 0;
  int bits_ = 0;
  std::vector<uint32_t> packed_;  // a pad follows the last row, so that vectors may run over
  std::vector<uint16_t> scale_;
  std::vector<uint8_t> zero_point_;
  SparseRows sparse_;
};

// y [batch, out] = x [batch, in] · Ŵᵀ in fp32; any batch. `pool` null: all on the calling thread.
void AffineMatmul(const AffineMatrix& matrix, const float* x, int64_t batch, float* y,
                  ThreadPool* pool);

// Rows [begin, end) of Ŵ as fp32 [end - begin, in].
void DequantizeAffineRows(const AffineMatrix& matrix, int64_t begin, int64_t end, float* out,
                          ThreadPool* pool);

// The same in plain loops, sums in fp64: the oracle, and what runs without AVX2.
void AffineMatmulReference(const AffineMatrix& matrix, int64_t begin, int64_t end, const float* x,
                           int64_t batch, float* y);
void DequantizeAffineRowsReference(const AffineMatrix& matrix, int64_t begin, int64_t end,
                                   float* out);

}  // namespace gradq::kernels
