#pragma once

// Activations as B operands of mma, straight from global memory: fp16 as they are, bf16 rounded to
// fp16. For machines of simt.cuh.

#include <cstdint>

#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"

namespace gradq::kernels {

// Two elements of T, the first in the low half, as two fp16.
template <class S>
GRADQ_DEVICE uint32_t HalfPair(const S&, const Half*, uint32_t pair) {
  return pair;
}
template <class S>
GRADQ_DEVICE uint32_t HalfPair(const S& s, const BFloat16*, uint32_t pair) {
  return s.PackHalf2(FloatOf(pair << 16), FloatOf(pair & 0xffff0000));
}

// Columns column .. column + 15 of a row of x as fp16 pairs, zeros from `in` on. `vectors`, the
// same for the whole warp: none of its columns is beyond `in`, and rows are 16-byte aligned.
template <class S, class T>
GRADQ_DEVICE void ReadColumns(const S& s, const T* row, int column, int in, bool vectors,
                              uint32_t (&pair)[kLaneColumns / 2]) {
  const auto* from = reinterpret_cast<const Words4*>(row + column);
  if (vectors) {
    GRADQ_UNROLL
    for (int v = 0; v < 2; ++v) {
      const Words4 words = s.Load(from + v);
      GRADQ_UNROLL
      for (int i = 0; i < 4; ++i) pair[4 * v + i] = HalfPair(s, row, words.word[i]);
    }
    return;
  }
  GRADQ_UNROLL
  for (int i = 0; i < kLaneColumns / 2; ++i) pair[i] = 0;
  // The rest is rare, so it is kept small rather than fast.
  const int end = in < column + kLaneColumns ? in : column + kLaneColumns;
  GRADQ_KEEP_LOOP
  for (int at = column; at < end; at += 2) {
    const uint32_t high = at + 1 < end ? row[at + 1].bits : 0;
    const uint32_t halves = HalfPair(s, row, row[at].bits | high << 16);
    GRADQ_UNROLL
    for (int i = 0; i < kLaneColumns / 2; ++i) {
      if (2 * i == at - column) pair[i] = halves;
    }
  }
}

}  // namespace gradq::kernels
