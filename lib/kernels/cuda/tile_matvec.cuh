#pragma once

// y = x · Ŵᵀ + bias of 1 .. 16 tokens on a machine of simt.cuh: every weight is read once. A block
// makes kRowTiles · 16 rows of y; its warps deal the columns among them chunk by chunk. Weights are
// the A operand of mma.m16n8k16, decoded in registers from codes that come straight from global
// memory; tokens are its B operand, straight from global memory, too. Outliers are further mma: the
// 16 entries of a group are 16 "columns". The warps' sums meet in shared memory and are added in
// the order of the warps: no atomics, and y depends on nothing but the sizes and the number of
// warps.

#include <cstdint>

#include "lib/kernels/cuda/activation_pairs.cuh"
#include "lib/kernels/cuda/decode_fragment.cuh"
#include "lib/kernels/cuda/outlier_groups.cuh"
#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/cuda/tile_matvec_plan.h"

namespace gradq::kernels {

template <class T>
struct TileMatvecArgs {
  TileView matrix;
  const T* x;     // [batch, in]
  const T* bias;  // [out] or null
  T* y;           // [batch, out]
  int batch;      // 1 .. 8 · kBatchTiles
};

// One warp of a block; lane = 4 · g + t as in tile_layout.h.
template <class S, TileEncoding kEncoding, int kBits, class T, class Shape>
class TileMatvecWarp {
 public:
  static constexpr int kRowTiles = Shape::kRowTiles;
  static constexpr int kBatchTiles = Shape::kBatchTiles;
  static constexpr int kWindows = WindowsPerChunk(kBits);
  static constexpr int kVectors = VectorsPerChunk(kBits);
  static constexpr int kOfChunk = kVectors * kWarpLanes;
  static constexpr int kDepth = TileMatvecDepth(kEncoding, kBits, kRowTiles, kBatchTiles);

  GRADQ_DEVICE TileMatvecWarp(const S& s, const TileMatvecArgs<T>& args)
      : s_(s),
        args_(args),
        in_(static_cast<int>(args.matrix.in_features)),
        warp_(s.thread() / kWarpLanes),
        warps_(s.threads() / kWarpLanes),
        lane_(s.thread() % kWarpLanes),
        aligned_(in_ % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % sizeof(Words4) == 0) {
    GRADQ_UNROLL
    for (int j = 0; j < kBatchTiles; ++j) {
      const int token = 8 * j + lane_ / 4;
      x_[j] = args.x + static_cast<int64_t>(token < args.batch ? token : args.batch - 1) * in_;
    }
  }

  GRADQ_DEVICE void Run() {
    const int chunks = static_cast<int>(args_.matrix.chunks);
    // All that comes from memory is asked for before any of it is awaited.
    GRADQ_UNROLL
    for (int slot = 0; slot < kDepth; ++slot) {
      const int chunk = warp_ + slot * warps_;
      if (chunk < chunks) FetchChunk(slot, chunk);
    }
    GRADQ_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      decoder_[i].Load(s_, args_.matrix, Tile(i), lane_);
      GRADQ_UNROLL
      for (int j = 0; j < kBatchTiles; ++j) {
        GRADQ_UNROLL
        for (int r = 0; r < 4; ++r) sum_[i][j][r] = 0;
      }
    }
    const bool outliers = args_.matrix.outlier_begin != nullptr;
    if (outliers) {
      GRADQ_UNROLL
      for (int i = 0; i < kRowTiles; ++i) outliers_[i].First(s_, args_.matrix, Tile(i), warp_);
    }

    // This warp's chunks lie in the slots in turn; one is filled anew as soon as it is used. A
    // group of outliers of every tile follows each chunk, as long as there are any: it waits for
    // activations while codes are under way. The order within a tile is the same for every
    // kRowTiles.
    for (int chunk = warp_; chunk < chunks;) {
      GRADQ_UNROLL
      for (int slot = 0; slot < kDepth; ++slot, chunk += warps_) {
        if (chunk >= chunks) continue;
        const int next = chunk + kDepth * warps_;
        MultiplyChunk(slot, chunk);
        if (next < chunks) FetchChunk(slot, next);
        GRADQ_UNROLL
        for (int i = 0; i < kRowTiles; ++i) {
          if (outliers) MultiplyOutliers(i);
        }
      }
    }
    if (outliers) {
      GRADQ_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        GRADQ_KEEP_LOOP
        while (outliers_[i].Left(args_.matrix)) MultiplyOutliers(i);
      }
    }
    Join();
  }

 private:
  using Decoder = TileDecoder<S, kEncoding, kBits>;

  // The last block may have less than kRowTiles: it computes some twice and stores them once.
  GRADQ_DEVICE int Tile(int i) const {
    const int tile = static_cast<int>(s_.block_x()) * kRowTiles + i;
    const int last = static_cast<int>(args_.matrix.row_tiles) - 1;
    return tile < last ? tile : last;
  }
  GRADQ_DEVICE int Column(int chunk, int window) const {
    return chunk * ChunkColumns(kBits) + window * kWindowColumns + lane_ % 4 * kLaneColumns;
  }

  GRADQ_DEVICE void FetchChunk(int slot, int chunk) {
    GRADQ_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      // Vectors of 16 bytes; 32 bits of them reach 64 GB.
      const auto at = static_cast<uint32_t>(Tile(i)) * static_cast<uint32_t>(args_.matrix.chunks) +
                      static_cast<uint32_t>(chunk);
      const Words4* from = args_.matrix.codes + (at * kOfChunk + static_cast<uint32_t>(lane_));
      GRADQ_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const Words4 words = s_.LoadStreaming(from + v * kWarpLanes);
        GRADQ_UNROLL
        for (int w = 0; w < 4; ++w) code_[slot][i][4 * v + w] = words.word[w];
      }
      GRADQ_UNROLL
      for (int window = 0; window < kWindows; ++window) {
        numbers_[slot][i][window] =
            decoder_[i].Fetch(args_.matrix, Tile(i), lane_, Column(chunk, window));
      }
    }
  }

  GRADQ_DEVICE void MultiplyChunk(int slot, int chunk) {
    GRADQ_UNROLL
    for (int window = 0; window < kWindows; ++window) {
      const int end = chunk * ChunkColumns(kBits) + (window + 1) * kWindowColumns;
      uint32_t x[kBatchTiles][kLaneColumns / 2];
      GRADQ_UNROLL
      for (int j = 0; j < kBatchTiles; ++j)
        ReadColumns(s_, x_[j], Column(chunk, window), in_, aligned_ && end <= in_, x[j]);
      GRADQ_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        WindowFragments weights;
        decoder_[i].Decode(s_, numbers_[slot][i][window], &code_[slot][i][window * kBits],
                           &weights);
        GRADQ_UNROLL
        for (int step = 0; step < 4; ++step) {
          GRADQ_UNROLL
          for (int j = 0; j < kBatchTiles; ++j) {
            const uint32_t b[2] = {x[j][2 * step], x[j][2 * step + 1]};
            s_.Mma(sum_[i][j], weights.a[step], b);
          }
        }
      }
    }
  }

  GRADQ_DEVICE void MultiplyOutliers(int i) {
    outliers_[i].Multiply(s_, args_.matrix, Tile(i), warps_, x_, sum_[i]);
  }

  // [warp][token][row] in shared memory; then every thread adds up some outputs.
  GRADQ_DEVICE void Join() const {
    float* partial = reinterpret_cast<float*>(s_.shared());
    constexpr int kOfWarp = kBatchTiles * 8 * Shape::kStride;
    GRADQ_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      GRADQ_UNROLL
      for (int j = 0; j < kBatchTiles; ++j) {
        GRADQ_UNROLL
        for (int r = 0; r < 4; ++r) {
          // Register r of C: row g or g + 8, token 2t or 2t + 1.
          const int row = i * kMmaRows + lane_ / 4 + r / 2 * 8;
          const int token = 8 * j + lane_ % 4 * 2 + r % 2;
          partial[warp_ * kOfWarp + token * Shape::kStride + row] = sum_[i][j][r];
        }
      }
    }
    s_.Sync();
    constexpr int kRows = kRowTiles * kMmaRows;
    for (int i = s_.thread(); i < args_.batch * kRows; i += s_.threads()) {
      const int token = i / kRows;
      const int64_t row = s_.block_x() * kRows + i % kRows;
      if (row >= args_.matrix.out_features) continue;
      float sum = 0;
      GRADQ_UNROLL
      for (int warp = 0; warp < warps_; ++warp)
        sum += partial[warp * kOfWarp + token * Shape::kStride + i % kRows];
      if (args_.bias != nullptr) sum += ToFloat(s_, args_.bias[row]);
      Store(s_, args_.y + token * args_.matrix.out_features + row, sum);
    }
  }

  const S& s_;
  const TileMatvecArgs<T>& args_;
  const int in_;
  const int warp_;
  const int warps_;
  const int lane_;
  const bool aligned_;
  // This lane's token of every batch tile. A lane beyond the batch has its last token: what it
  // computes belongs to a column of the product that is not stored.
  const T* x_[kBatchTiles];
  Decoder decoder_[kRowTiles];
  uint32_t code_[kDepth][kRowTiles][4 * kVectors];
  typename Decoder::Numbers numbers_[kDepth][kRowTiles][kWindows];
  float sum_[kRowTiles][kBatchTiles][4];
  OutlierGroups<S, T, kBatchTiles> outliers_[kRowTiles];
};

// The whole kernel: ceil(row_tiles / kRowTiles) blocks of up to 16 warps with
// Shape::SharedBytes of shared memory.
template <TileEncoding kEncoding, int kBits, class Shape, class S, class T>
GRADQ_DEVICE void TileMatvecBlock(const S& s, const TileMatvecArgs<T>& args) {
  TileMatvecWarp<S, kEncoding, kBits, T, Shape>(s, args).Run();
}

}  // namespace gradq::kernels
