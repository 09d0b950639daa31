#pragma once

// The kernels behind decode_ops.h, but attention (token_attention.cuh), and what is launched for
// given arguments: launch(name, LaunchShape, kernel) -> Status.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/status/status.h"
#include "lib/kernels/cuda/decode_elements.cuh"
#include "lib/kernels/decode_ops.h"

namespace gradq::kernels {

// A thread per element.
template <class T>
struct EmbedTokenKernel {
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 1;

  template <class S>
  GRADQ_DEVICE void operator()(const S& s) const {
    const int64_t i = s.block_x() * s.threads() + s.thread();
    if (i < hidden) residual[i] = ToFloat(s, embedding[*token * hidden + i]);
  }

  const T* embedding;
  const int32_t* token;
  int64_t hidden;
  float* residual;
};

// One block. A thread keeps its first eight elements and their weights in registers over the sum:
// all there are up to hidden = 8 · kThreads.
template <class T, bool kVectors>
struct AddRmsNormKernel {
  static constexpr int kThreads = 1024;
  static constexpr int kBlocks = 1;

  template <class S>
  GRADQ_DEVICE void operator()(const S& s) const {
    const int first = 8 * s.thread(), step = 8 * s.threads();
    float x[8], squares = 0;
    Add(s, first, x, &squares);
    const Eight<T> w = LoadEight<kVectors>(s, weight + first, hidden - first);
    for (int i = first + step; i < hidden; i += step) {
      float more[8];
      Add(s, i, more, &squares);
    }
    const float scale = s.ReciprocalSqrt(BlockSum(s, squares) / static_cast<float>(hidden) + eps);
    Norm(s, first, x, w, scale);
    for (int i = first + step; i < hidden; i += step) {
      const Eight<float> again = LoadEight<kVectors>(s, residual + i, hidden - i);
      GRADQ_UNROLL
      for (int e = 0; e < 8; ++e) x[e] = Element(s, again, e);
      Norm(s, i, x, LoadEight<kVectors>(s, weight + i, hidden - i), scale);
    }
  }

  // Eight elements of the sum from `i` on, zeros beyond the end, stored where they changed.
  template <class S>
  GRADQ_DEVICE void Add(const S& s, int i, float (&x)[8], float* squares) const {
    const Eight<float> old = LoadEight<kVectors>(s, residual + i, hidden - i);
    Eight<T> more = {};
    if (addend != nullptr) more = LoadEight<kVectors>(s, addend + i, hidden - i);
    GRADQ_UNROLL
    for (int e = 0; e < 8; ++e) {
      x[e] = Element(s, old, e) + Element(s, more, e);
      *squares = fmaf(x[e], x[e], *squares);
    }
    if (addend != nullptr) StoreEight<kVectors>(s, residual + i, x, hidden - i);
  }

  template <class S>
  GRADQ_DEVICE void Norm(const S& s, int i, const float (&x)[8], const Eight<T>& w,
                         float scale) const {
    float y[8];
    GRADQ_UNROLL
    for (int e = 0; e < 8; ++e) y[e] = x[e] * scale * Element(s, w, e);
    StoreEight<kVectors>(s, normed + i, y, hidden - i);
  }

  float* residual;
  const T* addend;
  const T* weight;
  T* normed;
  float eps;
  int hidden;
};

// A block of one warp per head of q, k and v. A lane has pairs i, i + head_dim / 2.
template <class T>
struct RotaryAppendKernel {
  static constexpr int kThreads = kWarpLanes;
  static constexpr int kBlocks = 1;
  static constexpr int kPairs = kMaxHeadDim / 2 / kWarpLanes;

  template <class S>
  GRADQ_DEVICE void operator()(const S& s) const {
    const int64_t row = *position;
    int64_t head = s.block_x();
    if (head < heads) {
      Rotate(s, q + head * head_dim, q_norm, row, rotated + head * head_dim);
      return;
    }
    head -= heads;
    if (head < kv_heads) {
      Rotate(s, k + head * head_dim, k_norm, row, keys + (head * capacity + row) * head_dim);
      return;
    }
    head -= kv_heads;
    for (int i = s.thread(); i < head_dim; i += s.threads())
      values[(head * capacity + row) * head_dim + i] = v[head * head_dim + i];
  }

  template <class S>
  GRADQ_DEVICE void Rotate(const S& s, const T* x, const T* norm, int64_t row, T* to) const {
    const int half = head_dim / 2;
    float low[kPairs], high[kPairs], squares = 0;
    GRADQ_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const int i = s.thread() + p * kWarpLanes;
      low[p] = i < half ? ToFloat(s, x[i]) : 0.f;
      high[p] = i < half ? ToFloat(s, x[i + half]) : 0.f;
      squares = fmaf(low[p], low[p], squares);
      squares = fmaf(high[p], high[p], squares);
    }
    if (norm != nullptr) {
      const float scale =
          s.ReciprocalSqrt(WarpSum(s, squares) / static_cast<float>(head_dim) + eps);
      GRADQ_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        const int i = s.thread() + p * kWarpLanes;
        low[p] = i < half ? low[p] * scale * ToFloat(s, norm[i]) : 0.f;
        high[p] = i < half ? high[p] * scale * ToFloat(s, norm[i + half]) : 0.f;
      }
    }
    const float* c = cos + row * head_dim;
    const float* n = sin + row * head_dim;
    GRADQ_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const int i = s.thread() + p * kWarpLanes;
      if (i >= half) continue;
      Store(s, to + i, low[p] * c[i] - high[p] * n[i]);
      Store(s, to + i + half, high[p] * c[i + half] + low[p] * n[i + half]);
    }
  }

  const T* q;
  const T* k;
  const T* v;
  const T* q_norm;
  const T* k_norm;
  float eps;
  const float* cos;
  const float* sin;
  const int32_t* position;
  int64_t heads;
  int64_t kv_heads;
  int64_t capacity;
  int head_dim;
  T* rotated;
  T* keys;
  T* values;
};

// Eight elements per thread, read before they are written.
template <class T, bool kVectors>
struct SwigluKernel {
  static constexpr int kThreads = 64;
  static constexpr int kBlocks = 1;

  template <class S>
  GRADQ_DEVICE void operator()(const S& s) const {
    const int i = 8 * (static_cast<int>(s.block_x()) * s.threads() + s.thread());
    const Eight<T> g = LoadEight<kVectors>(s, gate + i, count - i);
    const Eight<T> u = LoadEight<kVectors>(s, up + i, count - i);
    float y[8];
    GRADQ_UNROLL
    for (int e = 0; e < 8; ++e) {
      const float x = Element(s, g, e);
      y[e] = x / (1.f + s.Exp(-x)) * Element(s, u, e);
    }
    StoreEight<kVectors>(s, out + i, y, count - i);
  }

  const T* gate;
  const T* up;
  int count;
  T* out;
};

template <class Launch>
absl::Status LaunchEmbedToken(const EmbedTokenArgs& args, const Launch& launch) {
  return WithElementType(args.type, [&](auto zero) {
    using T = decltype(zero);
    using Kernel = EmbedTokenKernel<T>;
    LaunchShape shape;
    shape.grid_x = (args.hidden + Kernel::kThreads - 1) / Kernel::kThreads;
    shape.threads = Kernel::kThreads;
    return launch(
        "EmbedToken", shape,
        Kernel{static_cast<const T*>(args.embedding), args.token, args.hidden, args.residual});
  });
}

template <class Launch>
absl::Status LaunchAddRmsNorm(const AddRmsNormArgs& args, const Launch& launch) {
  const bool vectors = args.hidden % 8 == 0 && Aligned(args.residual) && Aligned(args.addend) &&
                       Aligned(args.weight) && Aligned(args.normed);
  return WithVectors(args.type, vectors, [&](auto zero, auto by_vectors) {
    using T = decltype(zero);
    using Kernel = AddRmsNormKernel<T, decltype(by_vectors)::value>;
    LaunchShape shape;
    // As many threads as have eight elements, in whole warps.
    const int64_t warps = (args.hidden + 8 * kWarpLanes - 1) / (8 * kWarpLanes);
    shape.threads = static_cast<int>(std::min<int64_t>(Kernel::kThreads, warps * kWarpLanes));
    shape.shared_bytes = shape.threads / kWarpLanes * static_cast<int>(sizeof(float));
    return launch("AddRmsNorm", shape,
                  Kernel{args.residual, static_cast<const T*>(args.addend),
                         static_cast<const T*>(args.weight), static_cast<T*>(args.normed), args.eps,
                         static_cast<int>(args.hidden)});
  });
}

template <class Launch>
absl::Status LaunchRotaryAppend(const RotaryAppendArgs& args, const Launch& launch) {
  return WithElementType(args.type, [&](auto zero) {
    using T = decltype(zero);
    using Kernel = RotaryAppendKernel<T>;
    const auto in = [](const void* pointer) { return static_cast<const T*>(pointer); };
    LaunchShape shape;
    shape.grid_x = args.heads + 2 * args.kv_heads;
    shape.threads = Kernel::kThreads;
    return launch(
        "RotaryAppend", shape,
        Kernel{in(args.q), in(args.k), in(args.v), in(args.q_norm), in(args.k_norm), args.eps,
               args.cos, args.sin, args.position, args.heads, args.kv_heads, args.capacity,
               static_cast<int>(args.head_dim), static_cast<T*>(args.rotated),
               static_cast<T*>(args.keys), static_cast<T*>(args.values)});
  });
}

template <class Launch>
absl::Status LaunchSwigluVector(const SwigluArgs& args, const Launch& launch) {
  const bool vectors =
      args.count % 8 == 0 && Aligned(args.gate) && Aligned(args.up) && Aligned(args.out);
  return WithVectors(args.type, vectors, [&](auto zero, auto by_vectors) {
    using T = decltype(zero);
    using Kernel = SwigluKernel<T, decltype(by_vectors)::value>;
    LaunchShape shape;
    shape.grid_x = (args.count + 8 * Kernel::kThreads - 1) / (8 * Kernel::kThreads);
    shape.threads = Kernel::kThreads;
    return launch("SwigluVector", shape,
                  Kernel{static_cast<const T*>(args.gate), static_cast<const T*>(args.up),
                         static_cast<int>(args.count), static_cast<T*>(args.out)});
  });
}

}  // namespace gradq::kernels
