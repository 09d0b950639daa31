#pragma once

// y = x · Ŵᵀ straight from packed codes, per-row tables and sparse outliers (FORMAT.md "lut"): the
// path of every
// token that inference decodes. Called from the compute thread; the pool's threads run tiles of
// rows. Each output is one fixed sum over columns: it depends on the SIMD target, never on threads,
// other rows or the batch.

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "lib/base/thread_pool.h"
#include "lib/kernels/sparse_rows.h"

namespace gradq::kernels {

// Codes and tables of one linear in the order the kernels read. A block of 16 lanes (one word each,
// three at 3 bits) holds the codes of 16·K consecutive columns, K = 32 codes per lane at 3 bits and
// 32 / bits else: lane l carries columns l, 16 + l, 32 + l, ... of the block from its lowest bit
// up, so that one shift of a vector of words yields the codes of 16 neighbouring columns. Columns
// after the last full block, and all columns at 5 to 8 bits, stay in the canonical order. The size
// is that of the stored tensors. Immutable; any number of readers.
class LutMatrix {
 public:
  // Lanes of a block, whatever the width of the running machine's vectors.
  static constexpr int64_t kLanes = 16;

  LutMatrix() = default;
  // `packed` [out, ceil(in * bits / 32)], `lut` fp16 bits [out, 2^bits], bits 1..8, in and out ≥ 1;
  // copied. The caller has checked sizes.
  LutMatrix(std::span<const uint32_t> packed, std::span<const uint16_t> lut, int64_t out_features,
            int64_t in_features, int bits, ThreadPool* pool = nullptr);
  // Adds `sparse`, of the same sizes, to the matrix. Not while it is being read.
  void SetSparse(SparseRows sparse) { sparse_ = std::move(sparse); }

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int bits() const { return bits_; }
  // Leading columns of a row that are in blocks.
  int64_t blocked_columns() const { return blocked_columns_; }
  // Words per row.
  int64_t stride() const { return stride_; }
  const uint32_t* row(int64_t r) const { return packed_.get() + r * stride_; }
  const uint16_t* table(int64_t r) const { return lut_.get() + (r << bits_); }
  // What is added to the weights of the codes.
  const SparseRows& sparse() const { return sparse_; }
  // Code of one weight; slow.
  uint32_t code(int64_t r, int64_t column) const;
  // Memory held.
  int64_t bytes() const;

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  template <typename T>
  using Buffer = std::unique_ptr<T[], Free>;

  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int64_t stride_ = 0;
  int64_t blocked_columns_ = 0;
  int bits_ = 0;
  Buffer<uint32_t> packed_;  // a readable pad follows the last row, so that vectors may run over
  Buffer<uint16_t> lut_;
  SparseRows sparse_;
};

// Above this batch a caller is better off with DequantizeLutRows and a matrix product.
inline constexpr int64_t kLutMatmulBatch = 8;

// y [batch, out] = x [batch, in] · Ŵᵀ in fp32; any batch. `pool` null: all on the calling thread.
void LutMatmul(const LutMatrix& matrix, const float* x, int64_t batch, float* y, ThreadPool* pool);

// Rows [begin, end) of Ŵ as fp32 [end - begin, in].
void DequantizeLutRows(const LutMatrix& matrix, int64_t begin, int64_t end, float* out,
                       ThreadPool* pool);

// The same for rows [begin, end) in plain loops and fp64 sums: what the vector code is tested
// against, and what runs on machines without AVX2. y [batch, out] gets columns [begin, end).
void LutMatmulReference(const LutMatrix& matrix, int64_t begin, int64_t end, const float* x,
                        int64_t batch, float* y);
void DequantizeLutRowsReference(const LutMatrix& matrix, int64_t begin, int64_t end, float* out);

// Sum of all words in vectors of the running machine: the least work that reading memory takes. For
// benchmarks.
uint32_t SumWords(const uint32_t* words, int64_t count);

}  // namespace gradq::kernels
