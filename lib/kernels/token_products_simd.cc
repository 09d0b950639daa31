// A product over tokens is cut as in BLIS: panels of kWidth columns of the right factor, packed
// once per call; panels of kRows rows of the left factor, packed (and scaled by s_k) by the task
// that owns the rows; between them a register tile. Every element of a sum is one chain of FMAs
// over the tokens of a block, so neither tile sizes nor threads show in the result.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/kernels/token_products.h"
#include "lib/kernels/triangle.h"

// Masked loads of Highway 1.0 read whole aligned vectors below AVX2: there the scalar target runs.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/token_products_simd.cc"
// foreach_target.h goes before all others of hwy/.
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr hn::ScalableTag<float> kTag;
constexpr int64_t kLanes = hn::MaxLanes(kTag);
constexpr int kVectors = 2;
constexpr int64_t kWidth = kVectors * kLanes;
// 24 of 32 registers (AVX-512) or 12 of 16 (AVX2) hold the tile.
constexpr int kRows = kLanes >= 16 ? 12 : kLanes >= 8 ? 6 : kLanes;

// Tokens whose left panels a task packs at once: with 48 rows 48 KiB, and a right panel of 32 KiB.
constexpr int64_t kTokenBlock = 256;
constexpr int64_t kGramRows = 48;
constexpr int64_t kGradientRows = 24;
constexpr int64_t kPackTokens = 64;

// tile [kRows, kWidth] = Σ_t a[t, :]ᵀ b[t, :] over panels a [tokens, kRows] and b [tokens, kWidth].
HWY_INLINE void MultiplyPanels(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                               int64_t tokens, float* HWY_RESTRICT tile) {
  using V = hn::Vec<decltype(kTag)>;
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(kTag);
  }
  for (int64_t t = 0; t < tokens; ++t, a += kRows, b += kWidth) {
    const V b0 = hn::Load(kTag, b);
    const V b1 = hn::Load(kTag, b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V ar = hn::Set(kTag, a[r]);
      sum[r][0] = hn::MulAdd(ar, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(ar, b1, sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) hn::Store(sum[r][v], kTag, tile + r * kWidth + v * kLanes);
  }
}

// source[t, first .. first + width) of rows with `stride` floats -> panel [tokens, width], zeros
// from `columns` on, times scale[t] when given. Writes up to kLanes floats beyond the panel.
HWY_INLINE void PackPanel(const float* HWY_RESTRICT source, int64_t stride, int64_t first,
                          int64_t columns, int64_t width, const float* scale, int64_t tokens,
                          float* HWY_RESTRICT panel) {
  for (int64_t v = 0; v < width; v += kLanes) {
    const int64_t valid = std::clamp<int64_t>(std::min(columns - first, width) - v, 0, kLanes);
    const auto mask = hn::FirstN(kTag, static_cast<size_t>(valid));
    for (int64_t t = 0; t < tokens; ++t) {
      // A single lane is read also where the mask hides it.
      auto value =
          valid > 0 ? hn::MaskedLoad(mask, kTag, source + t * stride + first + v) : hn::Zero(kTag);
      if (scale != nullptr) value = hn::Mul(value, hn::Set(kTag, scale[t]));
      hn::StoreU(value, kTag, panel + t * width + v);
    }
  }
}

// Right panels [ceil(columns / kWidth)][tokens][kWidth] of tokens [begin, end) of x [tokens,
// columns].
void PackRight(const float* x, int64_t tokens, int64_t columns, int64_t begin, int64_t end,
               float* panels) {
  int64_t panel = 0;
  for (int64_t j = 0; j < columns; j += kWidth, ++panel) {
    // A panel of whole vectors: PackPanel writes nothing beyond it.
    PackPanel(x + begin * columns, columns, j, columns, kWidth, nullptr, end - begin,
              panels + (panel * tokens + begin) * kWidth);
  }
}

// Σ_j row[j]² for j in [begin, end).
float SumOfSquares(const float* row, int64_t begin, int64_t end) {
  auto sum = hn::Zero(kTag);
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) {
    const auto v = hn::LoadU(kTag, row + j);
    sum = hn::MulAdd(v, v, sum);
  }
  if (j < end) {
    const auto v = hn::MaskedLoad(hn::FirstN(kTag, static_cast<size_t>(end - j)), kTag, row + j);
    sum = hn::MulAdd(v, v, sum);
  }
  return hn::GetLane(hn::SumOfLanes(kTag, sum));
}

// What of a tile is added.
enum class Of { kValue, kSquare, kScaled, kScaledAbsolute };

// target[0 .. count) += of tile row.
template <Of kOf>
HWY_INLINE void AddRow(const float* tile, int64_t count, float* target, float scale = 1.0f) {
  const auto scales = hn::Set(kTag, scale);
  for (int v = 0; v < kVectors; ++v, tile += kLanes, target += kLanes, count -= kLanes) {
    if (count <= 0) return;
    const auto value = hn::Load(kTag, tile);
    const auto add = [&](auto old) {
      if constexpr (kOf == Of::kSquare) return hn::MulAdd(value, value, old);
      if constexpr (kOf == Of::kScaled) return hn::MulAdd(value, scales, old);
      if constexpr (kOf == Of::kScaledAbsolute) return hn::MulAdd(hn::Abs(value), scales, old);
      return hn::Add(old, value);
    };
    if (count >= kLanes) {
      hn::StoreU(add(hn::LoadU(kTag, target)), kTag, target);
    } else {
      const auto mask = hn::FirstN(kTag, static_cast<size_t>(count));
      hn::BlendedStore(add(hn::MaskedLoad(mask, kTag, target)), mask, kTag, target);
    }
  }
}

// Rows [first, first + kGramRows) of one packed triangle; `scale` [tokens] may be null.
void GramRows(const float* x, const float* panels, const float* scale, int64_t tokens,
              int64_t columns, int64_t first, float* packed) {
  HWY_ALIGN float left[kGramRows * kTokenBlock + kLanes];
  HWY_ALIGN float tile[kRows * kWidth];
  const int64_t end = std::min(first + kGramRows, columns);
  for (int64_t t = 0; t < tokens; t += kTokenBlock) {
    const int64_t count = std::min(kTokenBlock, tokens - t);
    for (int64_t i = first; i < end; i += kRows) {
      PackPanel(x + t * columns, columns, i, columns, kRows, scale == nullptr ? nullptr : scale + t,
                count, left + (i - first) * kTokenBlock);
    }
    for (int64_t j = 0; j < end; j += kWidth) {
      const float* right = panels + (j / kWidth * tokens + t) * kWidth;
      for (int64_t i = first; i < end; i += kRows) {
        if (j >= i + kRows) continue;
        MultiplyPanels(left + (i - first) * kTokenBlock, right, count, tile);
        for (int64_t row = i; row < std::min(i + kRows, end); ++row) {
          AddRow<Of::kValue>(tile + (row - i) * kWidth, row + 1 - j, packed + TriangleRow(row) + j);
        }
      }
    }
  }
}

void AccumulateTriangles(const float* x, const float* dz, int64_t tokens, int64_t columns,
                         std::span<const int64_t> group_begin, float scale, float* const* packed,
                         float* panels, float* scales, ThreadPool* pool) {
  const int64_t groups = dz == nullptr ? 1 : static_cast<int64_t>(group_begin.size()) - 1;
  pool->ParallelFor((tokens + kPackTokens - 1) / kPackTokens, [&](int64_t item, int) {
    const int64_t begin = item * kPackTokens, end = std::min(begin + kPackTokens, tokens);
    PackRight(x, tokens, columns, begin, end, panels);
    if (dz == nullptr) return;
    for (int64_t t = begin; t < end; ++t) {
      const float* row = dz + t * group_begin[groups];
      for (int64_t k = 0; k < groups; ++k) {
        const float size = static_cast<float>(group_begin[k + 1] - group_begin[k]);
        scales[k * tokens + t] =
            SumOfSquares(row, group_begin[k], group_begin[k + 1]) * (scale * scale) / size;
      }
    }
  });
  // The longest rows first, so that the end is even.
  const int64_t row_blocks = (columns + kGramRows - 1) / kGramRows;
  pool->ParallelFor(row_blocks * groups, [&](int64_t item, int) {
    const int64_t block = row_blocks - 1 - item / groups, k = item % groups;
    GramRows(x, panels, dz == nullptr ? nullptr : scales + k * tokens, tokens, columns,
             block * kGramRows, packed[k]);
  });
}

// Rows [first, first + kGradientRows) of sums [out, in], sequence by sequence.
template <Of kOf>
void GradientRows(const float* dz, const float* panels, int64_t sequences, int64_t length,
                  int64_t in, int64_t out, int64_t first, float scale, float* left, float* sums) {
  HWY_ALIGN float tile[kRows * kWidth];
  const int64_t tokens = sequences * length;
  const int64_t end = std::min(first + kGradientRows, out);
  for (int64_t t = 0; t < tokens; t += length) {
    for (int64_t j = first; j < end; j += kRows) {
      PackPanel(dz + t * out, out, j, out, kRows, nullptr, length, left + (j - first) * length);
    }
    for (int64_t i = 0; i < in; i += kWidth) {
      const float* right = panels + (i / kWidth * tokens + t) * kWidth;
      for (int64_t j = first; j < end; j += kRows) {
        MultiplyPanels(left + (j - first) * length, right, length, tile);
        for (int64_t row = j; row < std::min(j + kRows, end); ++row) {
          AddRow<kOf>(tile + (row - j) * kWidth, in - i, sums + row * in + i, scale);
        }
      }
    }
  }
}

template <Of kOf>
void Gradients(const float* x, const float* dz, int64_t sequences, int64_t length, int64_t in,
               int64_t out, float scale, float* sums, float* panels, float* left,
               int64_t left_stride, ThreadPool* pool) {
  const int64_t tokens = sequences * length;
  pool->ParallelFor((tokens + kPackTokens - 1) / kPackTokens, [&](int64_t item, int) {
    const int64_t begin = item * kPackTokens;
    PackRight(x, tokens, in, begin, std::min(begin + kPackTokens, tokens), panels);
  });
  pool->ParallelFor((out + kGradientRows - 1) / kGradientRows, [&](int64_t item, int worker) {
    GradientRows<kOf>(dz, panels, sequences, length, in, out, item * kGradientRows, scale,
                      left + worker * left_stride, sums);
  });
}

void SquaredGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                      int64_t in, int64_t out, float* sums, float* panels, float* left,
                      int64_t left_stride, ThreadPool* pool) {
  Gradients<Of::kSquare>(x, dz, sequences, length, in, out, 1.0f, sums, panels, left, left_stride,
                         pool);
}

void ScaledGradients(const float* x, const float* dz, int64_t sequences, int64_t length, int64_t in,
                     int64_t out, bool absolute, float scale, float* sums, float* panels,
                     float* left, int64_t left_stride, ThreadPool* pool) {
  const auto add = absolute ? Gradients<Of::kScaledAbsolute> : Gradients<Of::kScaled>;
  add(x, dz, sequences, length, in, out, scale, sums, panels, left, left_stride, pool);
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {
namespace {

HWY_EXPORT(AccumulateTriangles);
HWY_EXPORT(SquaredGradients);
HWY_EXPORT(ScaledGradients);

// No target has wider panels or vectors.
constexpr int64_t kMaxWidth = 64;
constexpr int64_t kLeftRows = 24;

// Grows and stays: the compute thread calls with a few sizes again and again, and fresh pages cost
// as much as the product.
class Scratch {
 public:
  float* Get(int64_t count) {
    if (count > count_) {
      data_ = hwy::AllocateAligned<float>(static_cast<size_t>(count));
      GRADQ_CHECK(data_ != nullptr);
      count_ = count;
    }
    return data_.get();
  }

 private:
  hwy::AlignedFreeUniquePtr<float[]> data_;
  int64_t count_ = 0;
};
thread_local Scratch t_panels;
thread_local Scratch t_left;

int64_t LeftStride(int64_t length) { return (kLeftRows + kMaxWidth) * length + kMaxWidth; }

int64_t PanelFloats(int64_t tokens, int64_t columns) {
  return (columns + kMaxWidth - 1) / kMaxWidth * kMaxWidth * tokens;
}

}  // namespace

void AccumulateFisherBlocks(const float* x, const float* dz, int64_t tokens, int64_t columns,
                            std::span<const int64_t> group_begin, float scale, float* const* packed,
                            ThreadPool* pool) {
  const int64_t groups = static_cast<int64_t>(group_begin.size()) - 1;
  float* panels = t_panels.Get(PanelFloats(tokens, columns));
  float* scales = t_left.Get(groups * tokens);
  HWY_DYNAMIC_DISPATCH(AccumulateTriangles)
  (x, dz, tokens, columns, group_begin, scale, packed, panels, scales, pool);
}

void AccumulateGram(const float* x, int64_t tokens, int64_t columns, float* packed,
                    ThreadPool* pool) {
  float* panels = t_panels.Get(PanelFloats(tokens, columns));
  HWY_DYNAMIC_DISPATCH(AccumulateTriangles)
  (x, nullptr, tokens, columns, {}, 1.0f, &packed, panels, nullptr, pool);
}

void AccumulateSquaredGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                                int64_t in, int64_t out, float* sums, ThreadPool* pool) {
  float* panels = t_panels.Get(PanelFloats(sequences * length, in));
  float* left = t_left.Get(LeftStride(length) * pool->threads());
  HWY_DYNAMIC_DISPATCH(SquaredGradients)
  (x, dz, sequences, length, in, out, sums, panels, left, LeftStride(length), pool);
}

void AccumulateGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                         int64_t in, int64_t out, bool absolute, float scale, float* sums,
                         ThreadPool* pool) {
  float* panels = t_panels.Get(PanelFloats(sequences * length, in));
  float* left = t_left.Get(LeftStride(length) * pool->threads());
  HWY_DYNAMIC_DISPATCH(ScaledGradients)
  (x, dz, sequences, length, in, out, absolute, scale, sums, panels, left, LeftStride(length),
   pool);
}

}  // namespace gradq::kernels
#endif  // HWY_ONCE
