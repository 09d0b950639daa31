#pragma once

// Attention of one token over its cache, split over positions (flash-decoding). A block has one kv
// head, or kQueries of the query heads that read it, and one split; keys and values are read once
// for all of these. In a warp `row_lanes` lanes share a position, eight elements each; what is left
// are slots for other positions. Every slot keeps a softmax of its own (greatest score, sum of
// exponentials, weighted values), and they are joined in a fixed order: slots of a warp, warps of a
// block, and splits in a second launch. No launch depends on the position: a split without
// positions has total 0 and adds nothing.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/status/status.h"
#include "lib/kernels/cuda/decode_elements.cuh"
#include "lib/kernels/decode_ops.h"

namespace gradq::kernels {

// Σ exp(score - greatest) of the scores so far; weighted values go along with it.
struct Softmax {
  float greatest = -INFINITY;
  float total = 0;
};

struct MergeFactors {
  float kept;   // of what `softmax` had
  float added;  // of what `other` brings
};

// softmax := both together. Nothing on either side is no NaN.
template <class S>
GRADQ_DEVICE MergeFactors Merge(const S& s, Softmax* softmax, const Softmax& other) {
  const float greatest = other.greatest > softmax->greatest ? other.greatest : softmax->greatest;
  const float base = greatest == -INFINITY ? 0.f : greatest;
  const MergeFactors factors = {s.Exp(softmax->greatest - base), s.Exp(other.greatest - base)};
  softmax->greatest = greatest;
  softmax->total = softmax->total * factors.kept + other.total * factors.added;
  return factors;
}

// softmax := with kRows more scores, which become their exponentials; returns the factor of what it
// had before.
template <class S, int kRows>
GRADQ_DEVICE float Extend(const S& s, Softmax* softmax, float (&score)[kRows]) {
  float greatest = softmax->greatest;
  GRADQ_UNROLL
  for (int r = 0; r < kRows; ++r) greatest = score[r] > greatest ? score[r] : greatest;
  const float base = greatest == -INFINITY ? 0.f : greatest;
  const float kept = s.Exp(softmax->greatest - base);
  softmax->greatest = greatest;
  softmax->total *= kept;
  GRADQ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    score[r] = s.Exp(score[r] - base);
    softmax->total += score[r];
  }
  return kept;
}

// What is joined through memory: head_dim weighted values, then the softmax.
GRADQ_HOST_DEVICE constexpr int64_t PartFloats(int64_t head_dim) { return head_dim + 2; }

// Element i of `parts` parts that lie `stride` floats apart, in their order.
template <class S>
GRADQ_DEVICE float JoinParts(const S& s, const float* part, int64_t stride, int parts, int head_dim,
                             int i, Softmax* softmax) {
  float sum = 0;
  for (int p = 0; p < parts; ++p, part += stride) {
    const MergeFactors factors = Merge(s, softmax, {part[head_dim], part[head_dim + 1]});
    sum = sum * factors.kept + part[i] * factors.added;
  }
  return sum;
}

template <class T, int kQueries, bool kVectors>
struct TokenAttentionKernel {
  static constexpr int kThreads = 128;
  // What goes without spilling.
  static constexpr int kBlocks = kQueries > 4 ? 2 : 4;
  static constexpr int kWarps = kThreads / kWarpLanes;
  // Positions that a slot loads at a time, as many as registers hold.
  static constexpr int kRows = kQueries > 4 || sizeof(T) > 2 ? 2 : 4;

  template <class S>
  GRADQ_DEVICE void operator()(const S& s) const {
    const int lane = s.thread() % kWarpLanes, warp = s.thread() / kWarpLanes;
    const int slots = kWarpLanes / row_lanes, slot = lane / row_lanes;
    const int column = lane % row_lanes * 8;
    const int kv_head = static_cast<int>(s.block_x()) / query_groups;
    const int first = static_cast<int>(s.block_x()) % query_groups * kQueries;
    const int64_t head = static_cast<int64_t>(kv_head) * group + first;
    const int queries = group - first < kQueries ? group - first : kQueries;

    // Positions of the split: [begin, end), possibly none.
    const int all_end = *position + 1;
    const int all_begin = window > 0 && window < all_end ? all_end - window : 0;
    const int share = (all_end - all_begin + splits - 1) / splits;
    const int begin = all_begin + static_cast<int>(s.block_y()) * share;
    const int end = begin + share < all_end ? begin + share : all_end;

    float x[kQueries][8];
    GRADQ_UNROLL
    for (int n = 0; n < kQueries; ++n) {
      const Eight<T> loaded = LoadEight<kVectors>(s, q + (head + n) * head_dim + column,
                                                  n < queries ? head_dim - column : 0);
      GRADQ_UNROLL
      for (int e = 0; e < 8; ++e) x[n][e] = Element(s, loaded, e) * scale;
    }

    Softmax softmax[kQueries];
    float sum[kQueries][8] = {};
    const int64_t cache = kv_head * capacity * head_dim + column;
    for (int step = begin; step < end; step += kWarps * slots * kRows) {
      const int mine = step + warp * slots * kRows + slot;
      Eight<T> key[kRows], value[kRows];
      GRADQ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int row = mine + r * slots;
        const int count = row < end ? head_dim - column : 0;
        const int64_t offset = cache + static_cast<int64_t>(row) * head_dim;
        key[r] = LoadEight<kVectors>(s, keys + offset, count);
        value[r] = LoadEight<kVectors>(s, values + offset, count);
      }
      float weight[kQueries][kRows];
      Scores(s, x, key, weight);
      GRADQ_UNROLL
      for (int n = 0; n < kQueries; ++n) {
        GRADQ_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (mine + r * slots >= end) weight[n][r] = -INFINITY;
        }
        const float kept = Extend(s, &softmax[n], weight[n]);
        GRADQ_UNROLL
        for (int e = 0; e < 8; ++e) sum[n][e] *= kept;
      }
      GRADQ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        GRADQ_UNROLL
        for (int e = 0; e < 8; ++e) {
          const float v = Element(s, value[r], e);
          GRADQ_UNROLL
          for (int n = 0; n < kQueries; ++n) sum[n][e] = fmaf(weight[n][r], v, sum[n][e]);
        }
      }
    }
    JoinSlots(s, softmax, sum);
    Finish(s, head, queries, softmax, sum);
  }

  // score[n][r] = x[n] · key[r], the same in all lanes of a slot.
  template <class S>
  GRADQ_DEVICE void Scores(const S& s, const float (&x)[kQueries][8], const Eight<T> (&key)[kRows],
                           float (&score)[kQueries][kRows]) const {
    GRADQ_UNROLL
    for (int r = 0; r < kRows; ++r) {
      GRADQ_UNROLL
      for (int n = 0; n < kQueries; ++n) score[n][r] = 0;
      GRADQ_UNROLL
      for (int e = 0; e < 8; ++e) {
        const float k = Element(s, key[r], e);
        GRADQ_UNROLL
        for (int n = 0; n < kQueries; ++n) score[n][r] = fmaf(x[n][e], k, score[n][r]);
      }
    }
    for (int mask = row_lanes / 2; mask > 0; mask /= 2) {
      GRADQ_UNROLL
      for (int n = 0; n < kQueries; ++n) {
        GRADQ_UNROLL
        for (int r = 0; r < kRows; ++r) score[n][r] += s.ShuffleXor(score[n][r], mask);
      }
    }
  }

  template <class S>
  GRADQ_DEVICE void JoinSlots(const S& s, Softmax (&softmax)[kQueries],
                              float (&sum)[kQueries][8]) const {
    for (int mask = row_lanes; mask < kWarpLanes; mask *= 2) {
      GRADQ_UNROLL
      for (int n = 0; n < kQueries; ++n) {
        const Softmax other = {s.ShuffleXor(softmax[n].greatest, mask),
                               s.ShuffleXor(softmax[n].total, mask)};
        const MergeFactors factors = Merge(s, &softmax[n], other);
        GRADQ_UNROLL
        for (int e = 0; e < 8; ++e) {
          const float theirs = s.ShuffleXor(sum[n][e], mask);
          sum[n][e] = sum[n][e] * factors.kept + theirs * factors.added;
        }
      }
    }
  }

  // Joins the warps of the block through shared memory [kWarps][kQueries] of parts, and writes a
  // part of the split, or the result where there is one split.
  template <class S>
  GRADQ_DEVICE void Finish(const S& s, int64_t head, int queries,
                           const Softmax (&softmax)[kQueries],
                           const float (&sum)[kQueries][8]) const {
    auto* const parts = reinterpret_cast<float*>(s.shared());
    const int part_floats = static_cast<int>(PartFloats(head_dim));
    const int lane = s.thread() % kWarpLanes, warp = s.thread() / kWarpLanes;
    GRADQ_UNROLL
    for (int n = 0; n < kQueries; ++n) {
      float* const part = parts + (warp * kQueries + n) * part_floats;
      GRADQ_UNROLL
      for (int e = 0; e < 8; ++e) {
        if (lane < row_lanes && 8 * lane + e < head_dim) part[8 * lane + e] = sum[n][e];
      }
      if (lane == 0) {
        part[head_dim] = softmax[n].greatest;
        part[head_dim + 1] = softmax[n].total;
      }
    }
    s.Sync();
    for (int index = s.thread(); index < queries * head_dim; index += s.threads()) {
      const int n = index / head_dim, i = index % head_dim;
      Softmax joined;
      const float value = JoinParts(s, parts + n * part_floats, kQueries * part_floats, kWarps,
                                    head_dim, i, &joined);
      if (splits == 1) {
        Store(s, out + (head + n) * head_dim + i, value / joined.total);
        continue;
      }
      float* const to = partial + ((head + n) * splits + s.block_y()) * part_floats;
      to[i] = value;
      if (i == 0) {
        to[head_dim] = joined.greatest;
        to[head_dim + 1] = joined.total;
      }
    }
  }

  const T* q;
  const T* keys;
  const T* values;
  const int32_t* position;
  int window;  // 0: none
  int group;   // heads / kv_heads
  int query_groups;
  int head_dim;
  int row_lanes;  // the least power of two with eight elements each
  int splits;
  int64_t capacity;
  float scale;
  float* partial;
  T* out;
};

// Joins the splits of a head: a block per head, whose warps take turns at the splits.
template <class T>
struct JoinSplitsKernel {
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 2;
  static constexpr int kWarps = kThreads / kWarpLanes;
  static constexpr int kElements = kMaxHeadDim / kWarpLanes;  // of a lane

  template <class S>
  GRADQ_DEVICE void operator()(const S& s) const {
    const int lane = s.thread() % kWarpLanes, warp = s.thread() / kWarpLanes;
    const int part_floats = static_cast<int>(PartFloats(head_dim));
    Softmax softmax;
    float sum[kElements] = {};
    for (int split = warp; split < splits; split += kWarps) {
      const float* const part = partial + (s.block_x() * splits + split) * part_floats;
      const MergeFactors factors = Merge(s, &softmax, {part[head_dim], part[head_dim + 1]});
      GRADQ_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int i = lane + e * kWarpLanes;
        if (i < head_dim) sum[e] = sum[e] * factors.kept + part[i] * factors.added;
      }
    }
    auto* const parts = reinterpret_cast<float*>(s.shared());
    float* const mine = parts + warp * part_floats;
    GRADQ_UNROLL
    for (int e = 0; e < kElements; ++e) {
      if (lane + e * kWarpLanes < head_dim) mine[lane + e * kWarpLanes] = sum[e];
    }
    if (lane == 0) {
      mine[head_dim] = softmax.greatest;
      mine[head_dim + 1] = softmax.total;
    }
    s.Sync();
    if (s.thread() >= head_dim) return;
    Softmax joined;
    const float value = JoinParts(s, parts, part_floats, kWarps, head_dim, s.thread(), &joined);
    Store(s, out + s.block_x() * head_dim + s.thread(), value / joined.total);
  }

  const float* partial;
  int splits;
  int head_dim;
  T* out;
};
static_assert(JoinSplitsKernel<float>::kThreads >= kMaxHeadDim);

template <class T, int kQueries, bool kVectors, class Launch>
absl::Status LaunchAttentionParts(const TokenAttentionArgs& args, const Launch& launch) {
  using Kernel = TokenAttentionKernel<T, kQueries, kVectors>;
  Kernel kernel = {};
  kernel.q = static_cast<const T*>(args.q);
  kernel.keys = static_cast<const T*>(args.keys);
  kernel.values = static_cast<const T*>(args.values);
  kernel.position = args.position;
  kernel.window = static_cast<int>(std::min(args.window, args.capacity));
  kernel.group = static_cast<int>(args.heads / args.kv_heads);
  kernel.query_groups = (kernel.group + kQueries - 1) / kQueries;
  kernel.head_dim = static_cast<int>(args.head_dim);
  kernel.row_lanes = 1;
  while (8 * kernel.row_lanes < args.head_dim) kernel.row_lanes *= 2;
  kernel.splits = static_cast<int>(args.splits);
  kernel.capacity = args.capacity;
  kernel.scale = 1.f / std::sqrt(static_cast<float>(args.head_dim));
  kernel.partial = args.partial;
  kernel.out = static_cast<T*>(args.out);
  LaunchShape shape;
  shape.grid_x = args.kv_heads * kernel.query_groups;
  shape.grid_y = args.splits;
  shape.threads = Kernel::kThreads;
  shape.shared_bytes = static_cast<int>(Kernel::kWarps * kQueries * PartFloats(args.head_dim) *
                                        static_cast<int64_t>(sizeof(float)));
  return launch("TokenAttention", shape, kernel);
}

template <class Launch>
absl::Status LaunchTokenAttention(const TokenAttentionArgs& args, const Launch& launch) {
  return WithElementType(args.type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t group = args.heads / args.kv_heads;
    const bool vectors =
        args.head_dim % 8 == 0 && Aligned(args.q) && Aligned(args.keys) && Aligned(args.values);
    // Without vectors, for which no model is known, every head reads its keys alone.
    absl::Status parts = !vectors     ? LaunchAttentionParts<T, 1, false>(args, launch)
                         : group == 1 ? LaunchAttentionParts<T, 1, true>(args, launch)
                         : group == 2 ? LaunchAttentionParts<T, 2, true>(args, launch)
                         : group <= 4 ? LaunchAttentionParts<T, 4, true>(args, launch)
                                      : LaunchAttentionParts<T, 8, true>(args, launch);
    if (!parts.ok() || args.splits == 1) return parts;
    using Join = JoinSplitsKernel<T>;
    LaunchShape shape;
    shape.grid_x = args.heads;
    shape.threads = Join::kThreads;
    shape.shared_bytes = static_cast<int>(Join::kWarps * PartFloats(args.head_dim) *
                                          static_cast<int64_t>(sizeof(float)));
    return launch("JoinSplits", shape,
                  Join{args.partial, static_cast<int>(args.splits), static_cast<int>(args.head_dim),
                       static_cast<T*>(args.out)});
  });
}

}  // namespace gradq::kernels
