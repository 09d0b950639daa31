// Every loop walks whole vectors and then one masked vector that takes the very same operations.

#include <cmath>
#include <cstdint>
#include <limits>

#include "lib/kernels/block_ops.h"

// Masked loads of Highway 1.0 read whole aligned vectors below AVX2: there the scalar target runs.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/block_ops_simd.cc"
// foreach_target.h goes before all others of hwy/.
// clang-format off
#include "hwy/foreach_target.h"
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

// body(load, store, i) for i = 0, kLanes, ...: load(pointer) reads lanes [i, i + kLanes), `other`
// where the row has ended.
template <typename Body>
HWY_INLINE void ForEachVector(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    body([i](const float* p) HWY_ATTR { return hn::LoadU(kTag, p + i); },
         [i](V v, float* p) HWY_ATTR { hn::StoreU(v, kTag, p + i); });
  }
  if (i == count) return;
  const auto mask = hn::FirstN(kTag, static_cast<size_t>(count - i));
  body([i, mask](const float* p) HWY_ATTR { return hn::MaskedLoad(mask, kTag, p + i); },
       [i, mask](V v, float* p) HWY_ATTR { hn::BlendedStore(v, mask, kTag, p + i); });
}

HWY_INLINE float Total(V v) { return hn::GetLane(hn::SumOfLanes(kTag, v)); }

void RmsNorm(const float* HWY_RESTRICT x, const float* HWY_RESTRICT weight, float eps, int64_t rows,
             int64_t columns, float* HWY_RESTRICT out, float* HWY_RESTRICT scale) {
  for (int64_t r = 0; r < rows; ++r, x += columns, out += columns) {
    V squares = hn::Zero(kTag);
    ForEachVector(columns, [&](auto load, auto) HWY_ATTR {
      const V v = load(x);
      squares = hn::MulAdd(v, v, squares);
    });
    scale[r] = 1.0f / std::sqrt(Total(squares) / static_cast<float>(columns) + eps);
    const V s = hn::Set(kTag, scale[r]);
    ForEachVector(columns, [&](auto load, auto store) HWY_ATTR {
      store(hn::Mul(hn::Mul(load(x), s), load(weight)), out);
    });
  }
}

// dx = scale · (w∘dy) - x · scale³ · Σ(w∘dy∘x) / columns
void RmsNormBackward(const float* HWY_RESTRICT x, const float* HWY_RESTRICT weight,
                     const float* HWY_RESTRICT scale, const float* HWY_RESTRICT dout, int64_t rows,
                     int64_t columns, float* HWY_RESTRICT dx) {
  for (int64_t r = 0; r < rows; ++r, x += columns, dout += columns, dx += columns) {
    V dots = hn::Zero(kTag);
    ForEachVector(columns, [&](auto load, auto) HWY_ATTR {
      dots = hn::MulAdd(hn::Mul(load(dout), load(weight)), load(x), dots);
    });
    const float s = scale[r];
    const V sv = hn::Set(kTag, s);
    const V back = hn::Set(kTag, s * s * s * (Total(dots) / static_cast<float>(columns)));
    ForEachVector(columns, [&](auto load, auto store) HWY_ATTR {
      const V direct = hn::Mul(hn::Mul(load(dout), load(weight)), sv);
      store(hn::NegMulAdd(load(x), back, direct), dx);
    });
  }
}

void Rotate(const float* HWY_RESTRICT x, const float* HWY_RESTRICT cos,
            const float* HWY_RESTRICT sin, int64_t begin, int64_t end, int64_t positions,
            int64_t heads, int64_t head_dim, bool inverse, float* HWY_RESTRICT out) {
  const int64_t half = head_dim / 2;
  const V sign = hn::Set(kTag, inverse ? -1.0f : 1.0f);
  for (int64_t t = begin; t < end; ++t) {
    const float* c = cos + t % positions * head_dim;
    const float* s = sin + t % positions * head_dim;
    for (int64_t h = 0; h < heads; ++h) {
      const float* low = x + (t * heads + h) * head_dim;
      float* to = out + (t * heads + h) * head_dim;
      // Both halves of a table row are equal.
      ForEachVector(half, [&](auto load, auto store) HWY_ATTR {
        const V a = load(low), b = load(low + half);
        const V cv = load(c), sv = hn::Mul(load(s), sign);
        store(hn::Sub(hn::Mul(a, cv), hn::Mul(b, sv)), to);
        store(hn::Add(hn::Mul(b, cv), hn::Mul(a, sv)), to + half);
      });
    }
  }
}

// 1 / (1 + e^-x); beyond ±88 e^x leaves fp32 and the result is 0 or 1 anyway.
HWY_INLINE V Sigmoid(V x) {
  const V bounded = hn::Min(hn::Neg(x), hn::Set(kTag, 88.0f));
  return hn::Div(hn::Set(kTag, 1.0f), hn::Add(hn::Set(kTag, 1.0f), hn::Exp(kTag, bounded)));
}

void Swiglu(const float* gate, const float* up, int64_t count, float* HWY_RESTRICT out) {
  ForEachVector(count, [&](auto load, auto store) HWY_ATTR {
    const V g = load(gate);
    store(hn::Mul(hn::Mul(g, Sigmoid(g)), load(up)), out);
  });
}

void SwigluBackward(const float* gate, const float* up, const float* dout, int64_t count,
                    float* dgate, float* dup) {
  const V one = hn::Set(kTag, 1.0f);
  ForEachVector(count, [&](auto load, auto store) HWY_ATTR {
    const V g = load(gate), u = load(up), d = load(dout);
    const V sigmoid = Sigmoid(g);
    const V slope = hn::Mul(sigmoid, hn::MulAdd(g, hn::Sub(one, sigmoid), one));
    store(hn::Mul(hn::Mul(d, u), slope), dgate);
    store(hn::Mul(d, hn::Mul(g, sigmoid)), dup);
  });
}

void CrossEntropy(float* logits, const int64_t* targets, int64_t rows, int64_t columns,
                  float weight, float* losses) {
  const V lowest = hn::Set(kTag, -std::numeric_limits<float>::max());
  for (int64_t r = 0; r < rows; ++r, logits += columns) {
    if (targets[r] < 0) {
      ForEachVector(columns, [&](auto, auto store) HWY_ATTR { store(hn::Zero(kTag), logits); });
      losses[r] = 0;
      continue;
    }
    // The tail is apart: lanes beyond the row must neither win the maximum nor add to the sum.
    const int64_t whole = columns / kLanes * kLanes;
    V top = lowest;
    for (int64_t i = 0; i < whole; i += kLanes) top = hn::Max(top, hn::LoadU(kTag, logits + i));
    float max = hn::GetLane(hn::MaxOfLanes(kTag, top));
    for (int64_t i = whole; i < columns; ++i) max = std::fmax(max, logits[i]);

    const float target = logits[targets[r]];
    const V shift = hn::Set(kTag, max);
    V sums = hn::Zero(kTag);
    ForEachVector(columns, [&](auto load, auto store) HWY_ATTR {
      const V e = hn::Exp(kTag, hn::Sub(load(logits), shift));
      store(e, logits);
      // What was stored: nothing beyond the end of the row.
      sums = hn::Add(sums, load(logits));
    });
    const float sum = Total(sums);
    losses[r] = std::log(sum) + max - target;
    const V factor = hn::Set(kTag, weight / sum);
    ForEachVector(columns, [&](auto load, auto store)
                               HWY_ATTR { store(hn::Mul(load(logits), factor), logits); });
    logits[targets[r]] -= weight;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(RmsNormBackward);
HWY_EXPORT(Rotate);
HWY_EXPORT(Swiglu);
HWY_EXPORT(SwigluBackward);
HWY_EXPORT(CrossEntropy);

void RmsNormRows(const float* x, const float* weight, float eps, int64_t rows, int64_t columns,
                 float* out, float* scale) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, eps, rows, columns, out, scale);
}

void RmsNormBackwardRows(const float* x, const float* weight, const float* scale, const float* dout,
                         int64_t rows, int64_t columns, float* dx) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackward)(x, weight, scale, dout, rows, columns, dx);
}

void RotateRows(const float* x, const float* cos, const float* sin, int64_t begin, int64_t end,
                int64_t positions, int64_t heads, int64_t head_dim, bool inverse, float* out) {
  HWY_DYNAMIC_DISPATCH(Rotate)(x, cos, sin, begin, end, positions, heads, head_dim, inverse, out);
}

void SwigluRange(const float* gate, const float* up, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(Swiglu)(gate, up, count, out);
}

void SwigluBackwardRange(const float* gate, const float* up, const float* dout, int64_t count,
                         float* dgate, float* dup) {
  HWY_DYNAMIC_DISPATCH(SwigluBackward)(gate, up, dout, count, dgate, dup);
}

void CrossEntropyRows(float* logits, const int64_t* targets, int64_t rows, int64_t columns,
                      float weight, float* losses) {
  HWY_DYNAMIC_DISPATCH(CrossEntropy)(logits, targets, rows, columns, weight, losses);
}

}  // namespace gradq::kernels
#endif  // HWY_ONCE
