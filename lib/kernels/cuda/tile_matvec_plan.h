#pragma once

// Which instance of the kernel of tile_matvec.cuh multiplies which matrix: plain arithmetic, for
// the launchers and their tests; C++17, for host code that nvcc compiles, too. All numbers here
// come from arithmetic, none from a measurement.

#include <cstdint>

#include "lib/kernels/cuda/tile_layout.h"

namespace gradq::kernels {

struct TileMatvecPlan {
  int row_tiles = 1;    // of a block: 1, 2 or 4
  int batch_tiles = 1;  // of 8 tokens
  int warps = 8;        // of a block; they share its columns
};

// Most warps of a block, which leaves 128 registers to a lane.
inline constexpr int kTileMatvecWarps = 16;

// Chunks whose codes a lane holds in registers, while those of the others are under way; below 2
// there is no such kernel. About 6 vectors of 512 bytes in flight per warp, 48 KB per 16 warps:
// Little's law asks for 26 KB per multiprocessor (4.3 TB/s · 800 ns / 132). Codes, numbers of
// affine groups, tables, sums and activations must leave enough of the 128 registers to addresses
// and decoding; where the limits below are, ptxas begins to spill.
constexpr int TileMatvecDepth(TileEncoding encoding, int bits, int row_tiles, int batch_tiles) {
  const bool lut = encoding == TileEncoding::kLut;
  const int vectors = row_tiles * VectorsPerChunk(bits);
  const int words = 4 * vectors + (lut ? 0 : 2 * row_tiles * WindowsPerChunk(bits));
  const int tables = lut ? row_tiles << bits : 0;
  const int sums = 4 * row_tiles * batch_tiles + 8 * batch_tiles;
  const int fit = ((lut ? 80 : 72) - tables - sums) / words;
  const int wanted = 6 / vectors < 2 ? 2 : 6 / vectors;
  return fit < wanted ? fit : wanted;
}

// Four row tiles are for 2 bits alone, where activations weigh most beside codes.
constexpr bool HasTileMatvec(TileEncoding encoding, int bits, int row_tiles, int batch_tiles) {
  return TileMatvecDepth(encoding, bits, row_tiles, batch_tiles) >= 2 &&
         (row_tiles < 4 || bits == 2);
}

constexpr TileMatvecPlan PlanTileMatvec(TileEncoding encoding, int bits, int64_t out_features,
                                        int64_t batch, int64_t multiprocessors) {
  TileMatvecPlan plan;
  plan.batch_tiles = batch > 8 ? 2 : 1;
  // The order of an output's sum depends on the number of warps, and on nothing else that is
  // chosen here. So it may depend on the sizes but not on the batch or the device. Up to 8192 rows
  // there are at most two blocks of two row tiles per multiprocessor of a large GPU (132): 16 warps
  // each keep its schedulers busy.
  plan.warps = out_features <= 8192 ? kTileMatvecWarps : kTileMatvecWarps / 2;
  // Every block reads all activations again, from L1 or L2: 2 · batch bytes per column, beside 2 ·
  // bits bytes of codes per row tile. The busiest multiprocessor should read the least.
  const int64_t tiles = (out_features + kMmaRows - 1) / kMmaRows;
  int64_t least = 0;
  for (int row_tiles = 1; row_tiles <= 4; row_tiles *= 2) {
    if (!HasTileMatvec(encoding, bits, row_tiles, plan.batch_tiles)) continue;
    const int64_t blocks = (tiles + row_tiles - 1) / row_tiles;
    const int64_t rounds = (blocks + multiprocessors - 1) / multiprocessors;
    const int64_t bytes = rounds * (row_tiles * 2 * bits + 2 * batch);
    if (least != 0 && bytes >= least) continue;
    least = bytes;
    plan.row_tiles = row_tiles;
  }
  return plan;
}

// Tiles of a plan as constants.
template <int kRowTilesOf, int kBatchTilesOf>
struct TileMatvecShape {
  static constexpr int kRowTiles = kRowTilesOf;
  static constexpr int kBatchTiles = kBatchTilesOf;
  // Tokens of the shared array of partial sums are this far apart: the eight rows and four tokens
  // that a warp writes at once lie in 32 banks, as 2 · stride % 32 = 8.
  static constexpr int kStride = kRowTiles * kMmaRows + 4;
  static constexpr int SharedBytes(int warps) {
    return warps * kBatchTiles * 8 * kStride * static_cast<int>(sizeof(float));
  }
};

// use(TileMatvecShape) of the plan, which PlanTileMatvec made.
template <TileEncoding kEncoding, int kBits, class Use>
auto WithTileMatvecShape(const TileMatvecPlan& plan, const Use& use) {
  if constexpr (HasTileMatvec(kEncoding, kBits, 4, 1)) {
    if (plan.row_tiles == 4) return use(TileMatvecShape<4, 1>());
  }
  if constexpr (HasTileMatvec(kEncoding, kBits, 2, 2)) {
    if (plan.row_tiles == 2 && plan.batch_tiles == 2) return use(TileMatvecShape<2, 2>());
  }
  if constexpr (HasTileMatvec(kEncoding, kBits, 2, 1)) {
    if (plan.row_tiles == 2) return use(TileMatvecShape<2, 1>());
  }
  static_assert(HasTileMatvec(kEncoding, kBits, 1, 2) && !HasTileMatvec(kEncoding, kBits, 4, 2));
  if (plan.batch_tiles == 2) return use(TileMatvecShape<1, 2>());
  return use(TileMatvecShape<1, 1>());
}

}  // namespace gradq::kernels
