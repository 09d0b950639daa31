// Vector code of affine_matmul.h, compiled for AVX2 and AVX-512 and chosen at run time.

#include <algorithm>

#include "lib/kernels/affine_matmul.h"
#include "lib/kernels/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/affine_matmul_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "lib/kernels/sparse_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using U = hn::Rebind<uint32_t, F>;
using I = hn::Rebind<int32_t, F>;
using VF = hn::Vec<F>;
using VU = hn::Vec<U>;

constexpr int64_t kVector = HWY_TARGET == HWY_AVX2 ? 8 : 16;
// Rows of x that share one pass over the codes.
constexpr int kGroup = 4;

// Calls use(column, count, weights) for the columns of one row, at most kVector at a time, none
// across groups. A lambda's body would not be compiled for the target, so `use` is an object.
template <class Use>
HWY_INLINE void DecodeRow(const AffineMatrix& matrix, int64_t r, Use& use) {
  const int64_t bits = matrix.bits();
  const VU lane_bit = hn::Mul(hn::Iota(U(), 0), hn::Set(U(), static_cast<uint32_t>(bits)));
  const VU mask = hn::Set(U(), (1u << bits) - 1);
  for (int64_t group = 0; group < matrix.groups(); ++group) {
    const int64_t end = std::min((group + 1) * matrix.group_size(), matrix.in_features());
    const VF scale = hn::Set(F(), Float16ToFloat(matrix.scales(r)[group]));
    const auto zero = hn::Set(I(), int32_t{matrix.zero_points(r)[group]});
    for (int64_t column = group * matrix.group_size(); column < end; column += kVector) {
      const int64_t first = column * bits;
      const VU bit = hn::Add(lane_bit, hn::Set(U(), static_cast<uint32_t>(first % 8)));
      const auto* from = reinterpret_cast<const int32_t*>(
          reinterpret_cast<const char*>(matrix.row(r)) + first / 8);
      const auto words = hn::GatherOffset(I(), from, hn::BitCast(I(), hn::ShiftRight<3>(bit)));
      const VU codes =
          hn::And(hn::Shr(hn::BitCast(U(), words), hn::And(bit, hn::Set(U(), 7))), mask);
      const VF steps = hn::ConvertTo(F(), hn::Sub(hn::BitCast(I(), codes), zero));
      use.Take(column, std::min(kVector, end - column), hn::Mul(steps, scale));
    }
  }
}

template <int kRows>
class DotUse {
 public:
  HWY_INLINE DotUse(const float* x, int64_t stride) : x_(x), stride_(stride) {
    for (VF& sum : sum_) sum = hn::Zero(F());
  }
  HWY_INLINE void Take(int64_t column, int64_t count, VF weight) {
    const auto mask = hn::FirstN(F(), static_cast<size_t>(count));
    for (int b = 0; b < kRows; ++b) {
      sum_[b] = hn::MulAdd(weight, hn::MaskedLoad(mask, F(), x_ + b * stride_ + column), sum_[b]);
    }
  }
  HWY_INLINE void AddSparse(const SparseRows& sparse, int64_t row) {
    const float* x[kRows];
    for (int b = 0; b < kRows; ++b) x[b] = x_ + b * stride_;
    AddSparseRow<kRows>(sparse, row, x, sum_);
  }
  HWY_INLINE float Total(int b) const { return hn::GetLane(hn::SumOfLanes(F(), sum_[b])); }

 private:
  const float* x_;
  int64_t stride_;
  VF sum_[kRows];
};

class StoreUse {
 public:
  HWY_INLINE explicit StoreUse(float* out) : out_(out) {}
  HWY_INLINE void Take(int64_t column, int64_t count, VF weight) {
    hn::BlendedStore(weight, hn::FirstN(F(), static_cast<size_t>(count)), F(), out_ + column);
  }

 private:
  float* out_;
};

template <int kRows>
HWY_INLINE void DotRows(const AffineMatrix& matrix, int64_t begin, int64_t end, const float* x,
                        float* y) {
  for (int64_t r = begin; r < end; ++r) {
    DotUse<kRows> use(x, matrix.in_features());
    DecodeRow(matrix, r, use);
    use.AddSparse(matrix.sparse(), r);
    for (int b = 0; b < kRows; ++b) y[b * matrix.out_features() + r] = use.Total(b);
  }
}

void Dot(const AffineMatrix& matrix, int64_t begin, int64_t end, const float* x, int64_t batch,
         float* y) {
  const int64_t in = matrix.in_features();
  const int64_t out = matrix.out_features();
  int64_t b = 0;
  for (; b + kGroup <= batch; b += kGroup) {
    DotRows<kGroup>(matrix, begin, end, x + b * in, y + b * out);
  }
  for (; b < batch; ++b) DotRows<1>(matrix, begin, end, x + b * in, y + b * out);
}

void Dequantize(const AffineMatrix& matrix, int64_t begin, int64_t end, float* out) {
  for (int64_t r = begin; r < end; ++r) {
    StoreUse use(out + (r - begin) * matrix.in_features());
    DecodeRow(matrix, r, use);
    matrix.sparse().AddRow(r, out + (r - begin) * matrix.in_features());
  }
}

#else

void Dot(const AffineMatrix& matrix, int64_t begin, int64_t end, const float* x, int64_t batch,
         float* y) {
  AffineMatmulReference(matrix, begin, end, x, batch, y);
}

void Dequantize(const AffineMatrix& matrix, int64_t begin, int64_t end, float* out) {
  DequantizeAffineRowsReference(matrix, begin, end, out);
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {
namespace {

HWY_EXPORT(Dot);
HWY_EXPORT(Dequantize);

constexpr int64_t kTileRows = 32;
// Weights below which waking the pool costs more than it saves.
constexpr int64_t kSmall = 1 << 15;

template <typename Body>
void ForTiles(int64_t begin, int64_t end, int64_t work, ThreadPool* pool, const Body& body) {
  if (pool == nullptr || work < kSmall) return body(begin, end);
  const int64_t tiles = (end - begin + kTileRows - 1) / kTileRows;
  pool->ParallelFor(tiles, [&](int64_t tile, int) {
    const int64_t first = begin + tile * kTileRows;
    body(first, std::min(first + kTileRows, end));
  });
}

}  // namespace

void AffineMatmul(const AffineMatrix& matrix, const float* x, int64_t batch, float* y,
                  ThreadPool* pool) {
  const auto run = HWY_DYNAMIC_DISPATCH(Dot);
  ForTiles(0, matrix.out_features(), matrix.out_features() * matrix.in_features() * batch, pool,
           [&](int64_t begin, int64_t end) { run(matrix, begin, end, x, batch, y); });
}

void DequantizeAffineRows(const AffineMatrix& matrix, int64_t begin, int64_t end, float* out,
                          ThreadPool* pool) {
  const auto run = HWY_DYNAMIC_DISPATCH(Dequantize);
  ForTiles(begin, end, (end - begin) * matrix.in_features(), pool,
           [&](int64_t first, int64_t last) {
             run(matrix, first, last, out + (first - begin) * matrix.in_features());
           });
}

}  // namespace gradq::kernels
#endif
