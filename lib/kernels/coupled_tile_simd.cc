#include <algorithm>
#include <cmath>

#include "lib/kernels/coupled_tile.h"

// Masked loads of Highway 1.0 read whole aligned vectors below AVX2: there the scalar target runs.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/coupled_tile_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that a tile's row is a whole number of vectors.
using Lane = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Lane>;

constexpr Lane kTag;
constexpr int64_t kLanes = hn::MaxLanes(kTag);
// 24 of 32 registers (AVX-512) or 12 of 16 (AVX2) hold the sums.
constexpr int kRows = kLanes >= 16 ? 12 : kLanes >= 8 ? 6 : 1;
constexpr int kVectors = 2;
constexpr int64_t kWidth = kVectors * kLanes;

// kCount rows of c, `width` ≤ kWidth columns.
template <int kCount>
HWY_INLINE void MultiplyStrip(const float* HWY_RESTRICT a, int64_t a_stride,
                              const float* HWY_RESTRICT b, int64_t b_stride, int64_t depth,
                              int64_t width, bool accumulate, float* HWY_RESTRICT c,
                              int64_t c_stride) {
  const auto first = hn::FirstN(kTag, static_cast<size_t>(std::min(width, kLanes)));
  const auto second = hn::FirstN(kTag, static_cast<size_t>(std::max<int64_t>(width - kLanes, 0)));
  const bool whole = width == kWidth;
  Vector sum[kCount][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kCount; ++r) {
    sum[r][0] = accumulate ? hn::MaskedLoad(first, kTag, c + r * c_stride) : hn::Zero(kTag);
    sum[r][1] =
        accumulate ? hn::MaskedLoad(second, kTag, c + r * c_stride + kLanes) : hn::Zero(kTag);
  }
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    const Vector b0 = whole ? hn::LoadU(kTag, b) : hn::MaskedLoad(first, kTag, b);
    const Vector b1 =
        whole ? hn::LoadU(kTag, b + kLanes) : hn::MaskedLoad(second, kTag, b + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kCount; ++r) {
      const Vector factor = hn::Set(kTag, a[r * a_stride + k]);
      sum[r][0] = hn::MulAdd(factor, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(factor, b1, sum[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kCount; ++r) {
    hn::BlendedStore(sum[r][0], first, kTag, c + r * c_stride);
    hn::BlendedStore(sum[r][1], second, kTag, c + r * c_stride + kLanes);
  }
}

void MultiplyTarget(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                    int64_t rows, int64_t depth, int64_t width, bool accumulate, float* c,
                    int64_t c_stride) {
  for (int64_t j = 0; j < width; j += kWidth) {
    const int64_t columns = std::min(kWidth, width - j);
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      MultiplyStrip<kRows>(a + r * a_stride, a_stride, b + j, b_stride, depth, columns, accumulate,
                           c + r * c_stride + j, c_stride);
    }
    if constexpr (kRows > 4) {
      for (; r + 4 <= rows; r += 4) {
        MultiplyStrip<4>(a + r * a_stride, a_stride, b + j, b_stride, depth, columns, accumulate,
                         c + r * c_stride + j, c_stride);
      }
    }
    for (; r < rows; ++r) {
      MultiplyStrip<1>(a + r * a_stride, a_stride, b + j, b_stride, depth, columns, accumulate,
                       c + r * c_stride + j, c_stride);
    }
  }
}

void AddScaledTarget(float factor, const float* HWY_RESTRICT x, int64_t n, float* HWY_RESTRICT y) {
  const Vector f = hn::Set(kTag, factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::MulAdd(f, hn::LoadU(kTag, x + i), hn::LoadU(kTag, y + i)), kTag, y + i);
  }
  if (i < n) {
    const auto mask = hn::FirstN(kTag, static_cast<size_t>(n - i));
    const Vector sum =
        hn::MulAdd(f, hn::MaskedLoad(mask, kTag, x + i), hn::MaskedLoad(mask, kTag, y + i));
    hn::BlendedStore(sum, mask, kTag, y + i);
  }
}

void SumRowsTarget(const float* matrix, int64_t stride, const int32_t* rows, int count,
                   int64_t width, float* sums) {
  constexpr int kStrip = 8;
  int64_t j = 0;
  for (; j + kStrip * kLanes <= width; j += kStrip * kLanes) {
    Vector sum[kStrip];
#pragma GCC unroll 8
    for (int v = 0; v < kStrip; ++v) sum[v] = hn::Zero(kTag);
    for (int k = 0; k < count; ++k) {
      const float* row = matrix + rows[k] * stride + j;
#pragma GCC unroll 8
      for (int v = 0; v < kStrip; ++v) sum[v] = hn::Add(sum[v], hn::LoadU(kTag, row + v * kLanes));
    }
#pragma GCC unroll 8
    for (int v = 0; v < kStrip; ++v) hn::StoreU(sum[v], kTag, sums + j + v * kLanes);
  }
  for (; j < width; j += kLanes) {
    const auto mask = hn::FirstN(kTag, static_cast<size_t>(std::min(kLanes, width - j)));
    Vector sum = hn::Zero(kTag);
    for (int k = 0; k < count; ++k)
      sum = hn::Add(sum, hn::MaskedLoad(mask, kTag, matrix + rows[k] * stride + j));
    hn::BlendedStore(sum, mask, kTag, sums + j);
  }
}

// A column of M as the tile's updates read it: zeros beyond the last column.
struct Column {
  Vector v[kCoupledTile / kLanes];
};

HWY_INLINE Column LoadColumn(const float* from, int columns) {
  Column column;
#pragma GCC unroll 32
  for (int64_t v = 0; v < kCoupledTile / kLanes; ++v) {
    const int64_t count = std::clamp<int64_t>(columns - v * kLanes, 0, kLanes);
    column.v[v] = count == kLanes ? hn::LoadU(kTag, from + v * kLanes)
                                  : hn::MaskedLoad(hn::FirstN(kTag, static_cast<size_t>(count)),
                                                   kTag, from + v * kLanes);
  }
  return column;
}

HWY_INLINE void AddColumn(float factor, const Column& column, float* gradient) {
  const Vector f = hn::Set(kTag, factor);
#pragma GCC unroll 32
  for (int64_t v = 0; v < kCoupledTile / kLanes; ++v) {
    float* at = gradient + v * kLanes;
    hn::StoreU(hn::MulAdd(f, column.v[v], hn::LoadU(kTag, at)), kTag, at);
  }
}

int64_t DescendTarget(const CoupledTile& tile) {
  int64_t changes = 0;
  for (int i = 0; i < tile.columns; ++i) {
    const float* shared = tile.shared + i * tile.shared_stride;
    const Column column = LoadColumn(shared, tile.columns);
    for (int j = 0; j < tile.rows; ++j) {
      const int64_t at = j * tile.stride + i;
      if (tile.apart != nullptr && tile.apart[at] != 0) continue;
      const float* own = tile.own == nullptr ? nullptr : tile.own[j] + i * tile.shared_stride;
      const float* output = tile.output + j * tile.output_stride;
      const float matrix =
          own == nullptr ? shared[i] : std::fma(tile.own_factor, own[i], shared[i]);
      const float curvature = output[j] * matrix;
      if (!(curvature > 0.0f)) continue;
      const float target =
          tile.weight[at] + (tile.error[at] - tile.gradient[j * kCoupledTile + i] / curvature);
      const float* table = tile.table + j * tile.levels;
      int code = 0;
      for (int step = tile.levels / 2; step > 0; step /= 2) {
        const int probe = code + step;
        if (target > 0.5f * (table[probe - 1] + table[probe])) code = probe;
      }
      const float error = table[code] - tile.weight[at];
      const float moved = error - tile.error[at];
      if (moved == 0.0f) continue;
      ++changes;
      tile.error[at] = error;
      tile.codes[at] = static_cast<uint8_t>(code);
      tile.moved[j * kCoupledTile + i] = moved;
      for (int p = 0; p < tile.rows; ++p) {
        float factor = moved * output[p];
        if (p != j) factor *= tile.coupling;
        AddColumn(factor, column, tile.gradient + p * kCoupledTile);
      }
      if (own == nullptr) continue;
      AddColumn(moved * output[j] * tile.own_factor, LoadColumn(own, tile.columns),
                tile.gradient + j * kCoupledTile);
    }
  }
  return changes;
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {

HWY_EXPORT(MultiplyTarget);
HWY_EXPORT(AddScaledTarget);
HWY_EXPORT(SumRowsTarget);
HWY_EXPORT(DescendTarget);

void MultiplyAdd(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
                 int64_t depth, int64_t width, bool accumulate, float* c, int64_t c_stride) {
  HWY_DYNAMIC_DISPATCH(MultiplyTarget)
  (a, a_stride, b, b_stride, rows, depth, width, accumulate, c, c_stride);
}

void AddScaled(float factor, const float* x, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(AddScaledTarget)(factor, x, n, y);
}

void SumRows(const float* matrix, int64_t stride, const int32_t* rows, int count, int64_t width,
             float* sums) {
  HWY_DYNAMIC_DISPATCH(SumRowsTarget)(matrix, stride, rows, count, width, sums);
}

int64_t DescendTile(const CoupledTile& tile) { return HWY_DYNAMIC_DISPATCH(DescendTarget)(tile); }

}  // namespace gradq::kernels
#endif
