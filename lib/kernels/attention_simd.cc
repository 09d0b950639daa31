#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lib/base/status_macros.h"
#include "lib/kernels/attention.h"

// Masked loads of Highway 1.0 read whole aligned vectors below AVX2: there the scalar target runs.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/attention_simd.cc"
// foreach_target.h goes before all others of hwy/.
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/aligned_allocator.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr hn::ScalableTag<float> kTag;
using V = hn::Vec<decltype(kTag)>;
constexpr int64_t kLanes = hn::MaxLanes(kTag);
constexpr int64_t kBlock = 64;
constexpr int64_t kRowsAtOnce = kLanes >= 16 ? 8 : 4;
// Below any score, and finite: differences of two are 0, not NaN.
constexpr float kHidden = -1e30f;

constexpr int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// c [kRowsAtOnce, kVectors vectors] (+)= Σ_t a(r, t) b[t, :], with a(r, t) = a[r * row_step + t *
// depth_step].
template <int kVectors, bool kAdd>
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, int64_t row_step, int64_t depth_step,
                             const float* HWY_RESTRICT b, int64_t b_stride, int64_t depth,
                             float* HWY_RESTRICT c, int64_t c_stride) {
  V sum[kRowsAtOnce][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = kAdd ? hn::Load(kTag, c + r * c_stride + v * kLanes) : hn::Zero(kTag);
    }
  }
  for (int64_t t = 0; t < depth; ++t, b += b_stride, a += depth_step) {
    V right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = hn::Load(kTag, b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const V left = hn::Set(kTag, a[r * row_step]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) hn::Store(sum[r][v], kTag, c + r * c_stride + v * kLanes);
  }
}

// c [kBlock, columns] (+)= a b; columns is a multiple of kLanes.
template <bool kAdd>
void Multiply(const float* a, int64_t row_step, int64_t depth_step, const float* b,
              int64_t b_stride, int64_t depth, int64_t columns, float* c, int64_t c_stride) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
    for (int64_t r = 0; r < kBlock; r += kRowsAtOnce) {
      MultiplyTile<2, kAdd>(a + r * row_step, row_step, depth_step, b + j, b_stride, depth,
                            c + r * c_stride + j, c_stride);
    }
  }
  for (; j < columns; j += kLanes) {
    for (int64_t r = 0; r < kBlock; r += kRowsAtOnce) {
      MultiplyTile<1, kAdd>(a + r * row_step, row_step, depth_step, b + j, b_stride, depth,
                            c + r * c_stride + j, c_stride);
    }
  }
}

// Where the heads of one item lie, and the sizes of its padded copies: rows [padded, width] with
// zeros behind tokens and head_dim.
struct Layout {
  explicit Layout(const AttentionShape& shape)
      : tokens(shape.tokens),
        head_dim(shape.head_dim),
        padded(RoundUp(shape.tokens, kBlock)),
        width(RoundUp(shape.head_dim, kLanes)),
        window(shape.window > 0 ? shape.window : shape.tokens) {}

  int64_t size() const { return padded * width; }
  // The first key block that a query of block i sees.
  int64_t first_block(int64_t i) const {
    return std::max<int64_t>(0, i * kBlock - window + 1) / kBlock;
  }

  int64_t tokens, head_dim, padded, width, window;
};

// Rows of one head, `stride` floats apart, times `scale` -> padded copy.
void PadRows(const Layout& layout, const float* source, int64_t stride, float scale, float* to) {
  std::memset(to, 0, static_cast<size_t>(layout.size()) * sizeof(float));
  for (int64_t t = 0; t < layout.tokens; ++t) {
    for (int64_t d = 0; d < layout.head_dim; ++d)
      to[t * layout.width + d] = source[t * stride + d] * scale;
  }
}

// Padded copy -> per block of 64 rows [width, 64].
void TransposeBlocks(const Layout& layout, const float* padded, float* to) {
  for (int64_t block = 0; block < layout.padded; block += kBlock) {
    for (int64_t r = 0; r < kBlock; ++r) {
      for (int64_t d = 0; d < layout.width; ++d) {
        to[(block * layout.width) + d * kBlock + r] = padded[(block + r) * layout.width + d];
      }
    }
  }
}

// Adds to the rows of one head, `stride` floats apart, or sets them.
void UnpadRows(const Layout& layout, const float* padded, float scale, int64_t stride, float* to) {
  for (int64_t t = 0; t < layout.tokens; ++t) {
    for (int64_t d = 0; d < layout.head_dim; ++d)
      to[t * stride + d] = padded[t * layout.width + d] * scale;
  }
}

// Which of keys [first, first + kLanes) a query at t sees.
HWY_INLINE auto Visible(const Layout& layout, int64_t t, int64_t first) {
  const V key = hn::Iota(kTag, static_cast<float>(first));
  const float last = static_cast<float>(std::min(t, layout.tokens - 1));
  return hn::And(hn::Le(key, hn::Set(kTag, last)),
                 hn::Gt(key, hn::Set(kTag, static_cast<float>(t - layout.window))));
}

// Softmax of one block of scores [64, 64] in place, against the running maximum and sum of each
// query; out rows are rescaled.
void SoftmaxBlock(const Layout& layout, int64_t query, int64_t key, float* scores, float* maximum,
                  float* sums, float* out) {
  for (int64_t r = 0; r < kBlock; ++r) {
    float* row = scores + r * kBlock;
    V top = hn::Set(kTag, maximum[r]);
    for (int64_t c = 0; c < kBlock; c += kLanes) {
      const auto visible = Visible(layout, query + r, key + c);
      top = hn::Max(top, hn::IfThenElse(visible, hn::Load(kTag, row + c), hn::Set(kTag, kHidden)));
    }
    const V max = hn::MaxOfLanes(kTag, top);
    V sum = hn::Zero(kTag);
    for (int64_t c = 0; c < kBlock; c += kLanes) {
      const auto visible = Visible(layout, query + r, key + c);
      const V p = hn::IfThenElseZero(
          visible, hn::Exp(kTag, hn::Min(hn::Sub(hn::Load(kTag, row + c), max), hn::Zero(kTag))));
      hn::Store(p, kTag, row + c);
      sum = hn::Add(sum, p);
    }
    const float now = hn::GetLane(max);
    const V shrink = hn::Exp(kTag, hn::Sub(hn::Set(kTag, maximum[r]), max));
    sums[r] = sums[r] * hn::GetLane(shrink) + hn::GetLane(hn::SumOfLanes(kTag, sum));
    maximum[r] = now;
    float* to = out + r * layout.width;
    for (int64_t d = 0; d < layout.width; d += kLanes)
      hn::Store(hn::Mul(hn::Load(kTag, to + d), shrink), kTag, to + d);
  }
}

void Forward(const AttentionShape& shape, const float* q, const float* k, const float* v,
             int64_t begin, int64_t end, float* out, float* log_sums, float* scratch) {
  const Layout layout(shape);
  float* qs = scratch;
  float* ks = qs + layout.size();
  float* vs = ks + layout.size();
  float* keys = vs + layout.size();  // transposed blocks
  float* result = keys + layout.size();
  float* scores = result + kBlock * layout.width;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const int64_t q_stride = shape.heads * shape.head_dim,
                kv_stride = shape.kv_heads * shape.head_dim;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sequence = item / shape.heads, head = item % shape.heads;
    const int64_t kv_head = head / (shape.heads / shape.kv_heads);
    const int64_t q_begin = sequence * shape.tokens * q_stride + head * shape.head_dim;
    const int64_t kv_begin = sequence * shape.tokens * kv_stride + kv_head * shape.head_dim;
    PadRows(layout, q + q_begin, q_stride, scale, qs);
    PadRows(layout, k + kv_begin, kv_stride, 1.0f, ks);
    PadRows(layout, v + kv_begin, kv_stride, 1.0f, vs);
    TransposeBlocks(layout, ks, keys);
    for (int64_t i = 0; i * kBlock < layout.padded; ++i) {
      HWY_ALIGN float maximum[kBlock];
      HWY_ALIGN float sums[kBlock];
      std::fill_n(maximum, kBlock, kHidden);
      std::fill_n(sums, kBlock, 0.0f);
      std::fill_n(result, kBlock * layout.width, 0.0f);
      for (int64_t j = layout.first_block(i); j <= i; ++j) {
        Multiply<false>(qs + i * kBlock * layout.width, layout.width, 1,
                        keys + j * kBlock * layout.width, kBlock, layout.width, kBlock, scores,
                        kBlock);
        SoftmaxBlock(layout, i * kBlock, j * kBlock, scores, maximum, sums, result);
        Multiply<true>(scores, kBlock, 1, vs + j * kBlock * layout.width, layout.width, kBlock,
                       layout.width, result, layout.width);
      }
      for (int64_t r = 0; r < std::min(kBlock, layout.tokens - i * kBlock); ++r) {
        const int64_t t = i * kBlock + r;
        float* to = out + q_begin + t * q_stride;
        for (int64_t d = 0; d < layout.head_dim; ++d)
          to[d] = result[r * layout.width + d] / sums[r];
        log_sums[item * layout.tokens + t] = maximum[r] + std::log(sums[r]);
      }
    }
  }
}

// scores [64, 64] -> p = exp(score - log_sum), hidden ones 0; dp -> ds = p (dp - Σ dout out).
void SoftmaxBackwardBlock(const Layout& layout, int64_t query, int64_t key, const float* log_sums,
                          const float* dots, float* scores, float* dscores) {
  for (int64_t r = 0; r < kBlock; ++r) {
    // Queries behind the window have neither.
    const bool inside = query + r < layout.tokens;
    const V log_sum = hn::Set(kTag, inside ? log_sums[query + r] : 0.0f);
    const V dot = hn::Set(kTag, inside ? dots[query + r] : 0.0f);
    for (int64_t c = 0; c < kBlock; c += kLanes) {
      const auto visible = Visible(layout, query + r, key + c);
      float *p_at = scores + r * kBlock + c, *d_at = dscores + r * kBlock + c;
      // A visible score is not above its log sum by more than rounding; a hidden one may be
      // anything.
      const V bounded = hn::Min(hn::Sub(hn::Load(kTag, p_at), log_sum), hn::Set(kTag, 1.0f));
      const V p = hn::IfThenElseZero(visible, hn::Exp(kTag, bounded));
      hn::Store(p, kTag, p_at);
      hn::Store(hn::Mul(p, hn::Sub(hn::Load(kTag, d_at), dot)), kTag, d_at);
    }
  }
}

void Backward(const AttentionShape& shape, const float* q, const float* k, const float* v,
              const float* out, const float* log_sums, const float* dout, int64_t begin,
              int64_t end, float* dq, float* dk, float* dv, float* scratch) {
  const Layout layout(shape);
  float* next = scratch;
  const auto take = [&next](int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  };
  float *qs = take(layout.size()), *ks = take(layout.size()), *keys = take(layout.size()),
        *values = take(layout.size());
  float *douts = take(layout.size()), *dqs = take(layout.size()), *dks = take(layout.size()),
        *dvs = take(layout.size());
  float *scores = take(kBlock * kBlock), *dscores = take(kBlock * kBlock),
        *dots = take(layout.padded);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const int64_t q_stride = shape.heads * shape.head_dim,
                kv_stride = shape.kv_heads * shape.head_dim;
  const int64_t repeats = shape.heads / shape.kv_heads;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sequence = item / shape.kv_heads, kv_head = item % shape.kv_heads;
    const int64_t kv_begin = sequence * shape.tokens * kv_stride + kv_head * shape.head_dim;
    PadRows(layout, v + kv_begin, kv_stride, 1.0f, ks);
    TransposeBlocks(layout, ks, values);
    PadRows(layout, k + kv_begin, kv_stride, 1.0f, ks);
    TransposeBlocks(layout, ks, keys);
    std::fill_n(dks, layout.size(), 0.0f);
    std::fill_n(dvs, layout.size(), 0.0f);
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      const int64_t head = kv_head * repeats + repeat;
      const int64_t q_begin = sequence * shape.tokens * q_stride + head * shape.head_dim;
      const float* head_sums = log_sums + (sequence * shape.heads + head) * layout.tokens;
      PadRows(layout, q + q_begin, q_stride, scale, qs);
      PadRows(layout, dout + q_begin, q_stride, 1.0f, douts);
      std::fill_n(dqs, layout.size(), 0.0f);
      for (int64_t t = 0; t < layout.tokens; ++t) {
        V dot = hn::Zero(kTag);
        for (int64_t d = 0; d < layout.head_dim; d += kLanes) {
          const auto mask =
              hn::FirstN(kTag, static_cast<size_t>(std::min(kLanes, layout.head_dim - d)));
          const int64_t at = q_begin + t * q_stride + d;
          dot = hn::MulAdd(hn::MaskedLoad(mask, kTag, out + at),
                           hn::MaskedLoad(mask, kTag, dout + at), dot);
        }
        dots[t] = hn::GetLane(hn::SumOfLanes(kTag, dot));
      }
      for (int64_t i = 0; i * kBlock < layout.padded; ++i) {
        const float* qi = qs + i * kBlock * layout.width;
        const float* douti = douts + i * kBlock * layout.width;
        for (int64_t j = layout.first_block(i); j <= i; ++j) {
          const int64_t at = j * kBlock * layout.width;
          Multiply<false>(qi, layout.width, 1, keys + at, kBlock, layout.width, kBlock, scores,
                          kBlock);
          Multiply<false>(douti, layout.width, 1, values + at, kBlock, layout.width, kBlock,
                          dscores, kBlock);
          SoftmaxBackwardBlock(layout, i * kBlock, j * kBlock, head_sums, dots, scores, dscores);
          Multiply<true>(scores, 1, kBlock, douti, layout.width, kBlock, layout.width, dvs + at,
                         layout.width);
          Multiply<true>(dscores, 1, kBlock, qi, layout.width, kBlock, layout.width, dks + at,
                         layout.width);
          Multiply<true>(dscores, kBlock, 1, ks + at, layout.width, kBlock, layout.width,
                         dqs + i * kBlock * layout.width, layout.width);
        }
      }
      UnpadRows(layout, dqs, scale, q_stride, dq + q_begin);
    }
    // qs was scaled already.
    UnpadRows(layout, dks, 1.0f, kv_stride, dk + kv_begin);
    UnpadRows(layout, dvs, 1.0f, kv_stride, dv + kv_begin);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {
namespace {

HWY_EXPORT(Forward);
HWY_EXPORT(Backward);

// Grows and stays, one per thread that computes heads: fresh pages cost as much as the products.
float* Scratch(const AttentionShape& shape, int64_t copies) {
  static thread_local hwy::AlignedFreeUniquePtr<float[]> t_data;
  static thread_local int64_t t_count = 0;
  // No target has more than 64 lanes; scores, their gradients and one block of results come on top.
  const int64_t width = (shape.head_dim + 63) / 64 * 64, padded = (shape.tokens + 63) / 64 * 64;
  const int64_t count = copies * padded * width + 64 * (2 * 64 + width) + padded;
  if (count > t_count) {
    t_data = hwy::AllocateAligned<float>(static_cast<size_t>(count));
    GRADQ_CHECK(t_data != nullptr);
    t_count = count;
  }
  return t_data.get();
}

}  // namespace

void AttentionForward(const AttentionShape& shape, const float* q, const float* k, const float* v,
                      int64_t begin, int64_t end, float* out, float* log_sums) {
  HWY_DYNAMIC_DISPATCH(Forward)(shape, q, k, v, begin, end, out, log_sums, Scratch(shape, 4));
}

void AttentionBackward(const AttentionShape& shape, const float* q, const float* k, const float* v,
                       const float* out, const float* log_sums, const float* dout, int64_t begin,
                       int64_t end, float* dq, float* dk, float* dv) {
  HWY_DYNAMIC_DISPATCH(Backward)
  (shape, q, k, v, out, log_sums, dout, begin, end, dq, dk, dv, Scratch(shape, 8));
}

}  // namespace gradq::kernels
#endif  // HWY_ONCE
