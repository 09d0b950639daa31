// Vector code of sparse_rows.h for the files that compile it once per target; it is included by
// them inside that mechanism, hence no #pragma once.

#if defined(GRADQ_SPARSE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADQ_SPARSE_ROWS_INL_H_
#undef GRADQ_SPARSE_ROWS_INL_H_
#else
#define GRADQ_SPARSE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "lib/kernels/sparse_rows.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

// sum[b] += products of row r with kBatch rows of x, lane by lane in order of the entries: the same
// sum whatever the batch.
template <int kBatch>
HWY_INLINE void AddSparseRow(const SparseRows& sparse, int64_t r, const float* const* x,
                             hwy::HWY_NAMESPACE::Vec<hwy::HWY_NAMESPACE::ScalableTag<float>>* sum) {
  namespace hn = hwy::HWY_NAMESPACE;
  using F = hn::ScalableTag<float>;
  using I = hn::Rebind<int32_t, F>;
  const hn::Rebind<uint16_t, F> d16;
  const hn::Rebind<hwy::float16_t, F> half;
  constexpr int64_t kVector = HWY_TARGET == HWY_AVX2 ? 8 : 16;
  const int32_t* row = sparse.row_ptr(r);
  for (int64_t run = 0; run < sparse.runs(); ++run) {
    for (int64_t i = row[run]; i < row[run + 1]; i += kVector) {
      const auto inside = hn::FirstN(F(), static_cast<size_t>(row[run + 1] - i));
      const auto column = hn::IfThenElseZero(hn::RebindMask(I(), inside),
                                             hn::PromoteTo(I(), hn::LoadU(d16, sparse.col() + i)));
      const auto value = hn::IfThenElseZero(
          inside, hn::PromoteTo(F(), hn::BitCast(half, hn::LoadU(d16, sparse.value() + i))));
      for (int b = 0; b < kBatch; ++b) {
        const auto at = hn::GatherIndex(F(), x[b] + run * SparseRows::kRun, column);
        // Lanes beyond the row hold column 0, which may be infinite there.
        sum[b] = hn::MulAdd(value, hn::IfThenElseZero(inside, at), sum[b]);
      }
    }
  }
}

// Asks for the entries that come two such tiles after rows [first, first + rows); beyond the matrix
// this faults nowhere.
HWY_INLINE void PrefetchSparse(const SparseRows& sparse, int64_t first, int64_t rows) {
  constexpr int64_t kLine = 64 / sizeof(uint16_t);
  const int64_t begin = *sparse.row_ptr(first), end = *sparse.row_ptr(first + rows);
  const int64_t ahead = 2 * (end - begin);
  for (int64_t entry = begin; entry < end; entry += kLine) {
    __builtin_prefetch(sparse.col() + entry + ahead, 0, 2);
    __builtin_prefetch(sparse.value() + entry + ahead, 0, 2);
  }
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
