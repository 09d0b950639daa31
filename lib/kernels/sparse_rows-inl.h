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
#include <type_traits>

#include "lib/kernels/sparse_rows.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

// sum[b] += products of entries i, i + 1, ... before `end`, as many as `d` has lanes, with the rows
// of x from column `first`.
template <int kBatch, class D>
HWY_INLINE void AddEntries(D d, const SparseRows& sparse, int64_t i, int64_t end,
                           const float* const* x, int64_t first,
                           hwy::HWY_NAMESPACE::Vec<hwy::HWY_NAMESPACE::ScalableTag<float>>* sum) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> whole;
  const hn::Rebind<int32_t, D> di;
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> half;
  const auto inside = hn::FirstN(d, static_cast<size_t>(end - i));
  const auto column = hn::IfThenElseZero(hn::RebindMask(di, inside),
                                         hn::PromoteTo(di, hn::LoadU(d16, sparse.col() + i)));
  const auto value = hn::IfThenElseZero(
      inside, hn::PromoteTo(d, hn::BitCast(half, hn::LoadU(d16, sparse.value() + i))));
  for (int b = 0; b < kBatch; ++b) {
    // Lanes beyond the row hold column 0, which may be infinite there.
    const auto at = hn::IfThenElseZero(inside, hn::GatherIndex(d, x[b] + first, column));
    if constexpr (std::is_same_v<D, hn::ScalableTag<float>>) {
      sum[b] = hn::MulAdd(value, at, sum[b]);
    } else {
      sum[b] = hn::Add(sum[b], hn::ZeroExtendVector(whole, hn::Mul(value, at)));
    }
  }
}

// sum[b] += products of row r with kBatch rows of x, lane by lane in order of the entries: the same
// sum whatever the batch.
template <int kBatch>
HWY_INLINE void AddSparseRow(const SparseRows& sparse, int64_t r, const float* const* x,
                             hwy::HWY_NAMESPACE::Vec<hwy::HWY_NAMESPACE::ScalableTag<float>>* sum) {
  namespace hn = hwy::HWY_NAMESPACE;
  using F = hn::ScalableTag<float>;
  constexpr int64_t kVector = HWY_TARGET == HWY_AVX2 ? 8 : 16;
  const int32_t* row = sparse.row_ptr(r);
  for (int64_t run = 0; run < sparse.runs(); ++run) {
    int64_t i = row[run];
    const int64_t end = row[run + 1];
    for (; end - i > kVector / 2; i += kVector) {
      AddEntries<kBatch>(F(), sparse, i, end, x, run * SparseRows::kRun, sum);
    }
    // A gather takes its time per lane, whether it is wanted or not.
    if (i < end) AddEntries<kBatch>(hn::Half<F>(), sparse, i, end, x, run * SparseRows::kRun, sum);
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
