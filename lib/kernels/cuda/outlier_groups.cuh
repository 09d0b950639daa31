#pragma once

// Outliers of a row tile as mma of their own, for products that gather the activations of each: the
// 16 entries of a group are the 16 "columns" of A, which has one value per column, and B holds the
// activations of the entries' columns. For machines of simt.cuh.

#include <cstdint>

#include "lib/kernels/cuda/activation_pairs.cuh"
#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"

namespace gradq::kernels {

// The groups of one row tile that one warp has: every `warps`-th. Its lanes know of the group that
// is next; the entries of that are fetched one step ahead. All calls by the whole warp.
template <class S, class T, int kBatchTiles>
class OutlierGroups {
 public:
  GRADQ_DEVICE void First(const S& s, const TileView& view, int tile, int warp) {
    group_ = Begin(view, tile)[0] + static_cast<uint32_t>(warp);
    run_ = 0;
    Fetch(s, view, tile);
  }

  GRADQ_DEVICE bool Left(const TileView& view) const { return run_ < static_cast<int>(view.runs); }

  // Adds the next group's products, if there is one left. x[j]: the activations of token 8 · j + g,
  // [in]; sum[j]: registers of C.
  GRADQ_DEVICE void Multiply(const S& s, const TileView& view, int tile, int warps,
                             const T* const (&x)[kBatchTiles], float (&sum)[kBatchTiles][4]) {
    if (!Left(view)) return;
    uint32_t bits[kBatchTiles][4];
    GRADQ_UNROLL
    for (int e = 0; e < 4; ++e) {
      GRADQ_UNROLL
      for (int j = 0; j < kBatchTiles; ++j) bits[j][e] = Activation(entries_.word[e], x[j]);
    }
    uint32_t a[4];
    GRADQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const auto row = static_cast<uint32_t>(s.thread() % kWarpLanes / 4 + 8 * half);
      GRADQ_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        a[2 * pair + half] = ValueInRow(entries_.word[2 * pair], row) |
                             ValueInRow(entries_.word[2 * pair + 1], row) << 16;
      }
    }
    group_ += static_cast<uint32_t>(warps);
    Fetch(s, view, tile);
    GRADQ_UNROLL
    for (int j = 0; j < kBatchTiles; ++j) {
      const uint32_t b[2] = {HalfPair(s, x[j], bits[j][0] | bits[j][1] << 16),
                             HalfPair(s, x[j], bits[j][2] | bits[j][3] << 16)};
      s.Mma(sum[j], a, b);
    }
  }

 private:
  static GRADQ_DEVICE const uint32_t* Begin(const TileView& view, int tile) {
    return view.outlier_begin + tile * view.runs;
  }

  // Entries of group_, and the run it belongs to.
  GRADQ_DEVICE void Fetch(const S& s, const TileView& view, int tile) {
    const uint32_t* begin = Begin(view, tile);
    while (group_ >= begin[run_ + 1]) {
      ++run_;
      if (!Left(view)) return;
    }
    // A lane's four: those at k = 2t, 2t + 1, 2t + 8, 2t + 9 of the mma.
    entries_ = s.LoadStreaming(reinterpret_cast<const Words4*>(view.outliers) +
                               static_cast<int64_t>(group_) * (kOutlierGroup / 4) + s.thread() % 4);
  }

  static GRADQ_DEVICE uint32_t ValueInRow(uint32_t entry, uint32_t row) {
    return (entry >> 12 & 15) == row ? entry >> 16 : 0;
  }
  // Bits of x in an entry's column. What fills a group up is 0 and stays away from x, whose first
  // column may hold an infinity.
  GRADQ_DEVICE uint32_t Activation(uint32_t entry, const T* x) const {
    if (entry == 0) return 0;
    return x[run_ * static_cast<int>(kOutlierRun) + static_cast<int>(entry & 0xfff)].bits;
  }

  uint32_t group_;  // next
  int run_;         // of group_; view.runs when none is left
  Words4 entries_;
};

}  // namespace gradq::kernels
