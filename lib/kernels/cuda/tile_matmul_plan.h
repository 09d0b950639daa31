#pragma once

// Which instance of the kernel of tile_matmul.cuh multiplies which matrix with how many tokens:
// plain arithmetic, for the launchers and their tests; C++17, for host code that nvcc compiles,
// too. All numbers here come from arithmetic, none from a measurement.

#include <cstdint>
#include <initializer_list>

#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/cuda/window_outliers.cuh"

namespace gradq::kernels {

inline constexpr int kTileMatmulWarps = 8;  // of a block

// A block makes row_warps · 32 rows of y (each warp has two row tiles) for batch_tiles · 8 tokens.
// What is left of its warps splits the columns.
struct TileMatmulPlan {
  int row_warps = 4;    // 2, 4 or 8
  int batch_tiles = 4;  // 4 or 8

  constexpr int rows() const { return row_warps * 2 * kMmaRows; }
  constexpr int tokens() const { return batch_tiles * 8; }
  constexpr int split_warps() const { return kTileMatmulWarps / row_warps; }
};

// Every instance takes nvcc some seconds per width: those that only very small or large layers want
// are left out.
constexpr bool HasTileMatmul(int row_warps, int batch_tiles) {
  return row_warps == 2 || row_warps == 4 || (row_warps == 8 && batch_tiles == 8);
}

// Estimated clocks of a product, per 64 columns and up to a factor that plans don't change. With w
// waves of blocks, one per multiprocessor (132 are assumed, so that the order of a sum doesn't
// depend on the device), and k split warps it is w / k times what a stage, one window per warp,
// takes: the larger of
// * two warps per scheduler, each with 200 instructions (300 at 4 bits, by scripts/sass_count) and
//   8 mma per batch tile, while an mma takes the scheduler's tensor core 6 clocks;
// * the stage's activations (k · tokens · 128 bytes) and codes (2048 · bits bytes) from L2, at 22
//   bytes per clock and multiprocessor where all are busy (5.5 TB/s), 64 at most.
constexpr int64_t TileMatmulClocks(const TileMatmulPlan& plan, int bits, int64_t out_features,
                                   int64_t batch) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t blocks = (out_features + plan.rows() - 1) / plan.rows() *
                         ((batch + plan.tokens() - 1) / plan.tokens());
  const int64_t busy = blocks < kMultiprocessors ? blocks : kMultiprocessors;
  const int64_t waves = (blocks + kMultiprocessors - 1) / kMultiprocessors;
  const int64_t issue = 2 * ((bits == 4 ? 300 : 200) + 8 * plan.batch_tiles);
  const int64_t tensor = 2 * 8 * 6 * plan.batch_tiles;
  const int64_t compute = issue > tensor ? issue : tensor;
  const int64_t bytes = plan.split_warps() * plan.tokens() * 128 + 2048 * bits;
  const int64_t rate = 22 * kMultiprocessors / busy < 64 ? 22 * kMultiprocessors / busy : 64;
  const int64_t stage = compute > bytes / rate ? compute : bytes / rate;
  return waves * stage * plan.row_warps;
}

// The fewest clocks; of equals the most rows, which read activations least often.
constexpr TileMatmulPlan PlanTileMatmul(int bits, int64_t out_features, int64_t batch) {
  TileMatmulPlan best;
  int64_t least = 0;
  for (const int batch_tiles : {8, 4}) {
    if (batch_tiles == 8 && batch <= 32) continue;
    for (const int row_warps : {8, 4, 2}) {
      if (!HasTileMatmul(row_warps, batch_tiles)) continue;
      const TileMatmulPlan plan = {row_warps, batch_tiles};
      const int64_t clocks = TileMatmulClocks(plan, bits, out_features, batch);
      if (least != 0 && clocks >= least) continue;
      least = clocks;
      best = plan;
    }
  }
  return best;
}

// One plan as constants.
template <int kRowWarpsOf, int kBatchTilesOf>
struct TileMatmulShape {
  static constexpr int kRowWarps = kRowWarpsOf;
  static constexpr int kBatchTiles = kBatchTilesOf;
  static_assert(HasTileMatmul(kRowWarps, kBatchTiles));
  static constexpr int kSplitWarps = kTileMatmulWarps / kRowWarps;
  static constexpr int kThreads = kTileMatmulWarps * kWarpLanes;
  static constexpr int kRows = kRowWarps * 2 * kMmaRows;
  static constexpr int kTokens = kBatchTiles * 8;

  // Activations of one stage, [split][token][64 columns] of 16 bits, and how many stages are in
  // shared memory: 64 KB at most, so that with the images of outliers a block fits into the 99 KB
  // of small GPUs.
  static constexpr int kStageBytes = kSplitWarps * kTokens * kWindowColumns * 2;
  static constexpr int kStages = 64 * 1024 / kStageBytes < 4 ? 64 * 1024 / kStageBytes : 4;
  static_assert(kStages >= 2 && kStages * kStageBytes <= 64 * 1024);

  // Partial sums, [split][token][row] of fp32, over the same memory. Tokens are this far apart: the
  // eight rows and four token pairs that a warp writes at once lie in 32 banks, as
  // 2 · stride % 32 = 8.
  static constexpr int kJoinStride = kRows + 4;
  static constexpr int kJoinBytes = kSplitWarps * kTokens * kJoinStride * 4;

  static constexpr int SharedBytes(bool outliers) {
    const int images = outliers ? kTileMatmulWarps * kOutlierImageBytes : 0;
    const int bytes = kStages * kStageBytes + images;
    return bytes > kJoinBytes ? bytes : kJoinBytes;
  }
};

// use(TileMatmulShape) of the plan.
template <class Use>
auto WithTileMatmulShape(const TileMatmulPlan& plan, const Use& use) {
  if (plan.batch_tiles == 8) {
    if (plan.row_warps == 8) return use(TileMatmulShape<8, 8>());
    return plan.row_warps == 4 ? use(TileMatmulShape<4, 8>()) : use(TileMatmulShape<2, 8>());
  }
  return plan.row_warps == 4 ? use(TileMatmulShape<4, 4>()) : use(TileMatmulShape<2, 4>());
}

}  // namespace gradq::kernels
