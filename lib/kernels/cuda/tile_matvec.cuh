#pragma once

// y = x · Ŵᵀ + bias of 1 .. 16 tokens on a machine of simt.cuh: every weight is read once. A block
// makes kRowTiles · 16 rows of y; its warps deal the columns among them chunk by chunk. Weights are
// the A operand of mma.m16n8k16, decoded in registers from codes that come straight from global
// memory; tokens are its B operand, straight from global memory, too. Outliers are further mma: the
// 16 entries of a group are 16 "columns". The warps' sums meet in shared memory and are added in
// the order of the warps: no atomics, and y depends on nothing but the sizes and the number of
// warps.

#include <cstdint>

#include "lib/kernels/cuda/decode_fragment.cuh"
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
      for (int i = 0; i < kRowTiles; ++i) FirstOutliers(i);
    }

    // Slot k holds chunk first + k · warps, and is filled anew as soon as that is used. A group of
    // outliers of every tile follows each chunk, as long as there are any: it waits for activations
    // while codes are under way. The order within a tile is the same for every kRowTiles.
    for (int first = warp_; first < chunks; first += kDepth * warps_) {
      GRADQ_UNROLL
      for (int slot = 0; slot < kDepth; ++slot) {
        const int chunk = first + slot * warps_;
        const int next = chunk + kDepth * warps_;
        if (chunk < chunks) {
          MultiplyChunk(slot, chunk);
          GRADQ_UNROLL
          for (int i = 0; i < kRowTiles; ++i) {
            if (outliers) MultiplyOutliers(i);
          }
        }
        if (next < chunks) FetchChunk(slot, next);
      }
    }
    if (outliers) {
      GRADQ_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        GRADQ_KEEP_LOOP
        while (run_[i] < Runs()) MultiplyOutliers(i);
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
  // Starts of the lists of outliers of one row tile.
  GRADQ_DEVICE const uint32_t* OutlierBegin(int i) const {
    return args_.matrix.outlier_begin + static_cast<int64_t>(Tile(i)) * Runs();
  }
  GRADQ_DEVICE int Runs() const { return static_cast<int>(args_.matrix.runs); }
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

  // Of each row tile's groups of outliers, this warp has every warps-th. entries_[i] are those of
  // group group_[i], which belongs to run run_[i] and is before run_end_[i]; no groups are left
  // when run_[i] is Runs().
  GRADQ_DEVICE void FirstOutliers(int i) {
    group_[i] = OutlierBegin(i)[0] + static_cast<uint32_t>(warp_);
    run_end_[i] = OutlierBegin(i)[1];
    run_[i] = 0;
    FetchOutliers(i);
  }
  GRADQ_DEVICE void FetchOutliers(int i) {
    while (group_[i] >= run_end_[i]) {
      if (++run_[i] == Runs()) return;
      run_end_[i] = OutlierBegin(i)[run_[i] + 1];
    }
    // A lane's four entries: those at k = 2t, 2t + 1, 2t + 8, 2t + 9 of the mma.
    entries_[i] =
        s_.LoadStreaming(reinterpret_cast<const Words4*>(args_.matrix.outliers) +
                         static_cast<int64_t>(group_[i]) * (kOutlierGroup / 4) + lane_ % 4);
  }

  // One group, if there is one left.
  GRADQ_DEVICE void MultiplyOutliers(int i) {
    if (run_[i] == Runs()) return;
    uint32_t x[kBatchTiles][4];
    uint32_t a[4];
    GRADQ_UNROLL
    for (int e = 0; e < 4; ++e) {
      GRADQ_UNROLL
      for (int j = 0; j < kBatchTiles; ++j) x[j][e] = Activation(entries_[i].word[e], run_[i], j);
    }
    GRADQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = static_cast<uint32_t>(lane_ / 4 + 8 * half);
      GRADQ_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        a[2 * pair + half] = ValueInRow(entries_[i].word[2 * pair], row) |
                             ValueInRow(entries_[i].word[2 * pair + 1], row) << 16;
      }
    }
    group_[i] += static_cast<uint32_t>(warps_);
    FetchOutliers(i);
    GRADQ_UNROLL
    for (int j = 0; j < kBatchTiles; ++j) {
      const uint32_t b[2] = {HalfPair(s_, args_.x, x[j][0] | x[j][1] << 16),
                             HalfPair(s_, args_.x, x[j][2] | x[j][3] << 16)};
      s_.Mma(sum_[i][j], a, b);
    }
  }
  static GRADQ_DEVICE uint32_t ValueInRow(uint32_t entry, uint32_t row) {
    return (entry >> 12 & 15) == row ? entry >> 16 : 0;
  }
  // Bits of x in an entry's column. What fills a group up is 0 and stays away from x, whose first
  // column may hold an infinity.
  GRADQ_DEVICE uint32_t Activation(uint32_t entry, int run, int batch_tile) const {
    if (entry == 0) return 0;
    return x_[batch_tile][run * static_cast<int>(kOutlierRun) + static_cast<int>(entry & 0xfff)]
        .bits;
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
          const int row = i * kTileRows + lane_ / 4 + r / 2 * 8;
          const int token = 8 * j + lane_ % 4 * 2 + r % 2;
          partial[warp_ * kOfWarp + token * Shape::kStride + row] = sum_[i][j][r];
        }
      }
    }
    s_.Sync();
    constexpr int kRows = kRowTiles * kTileRows;
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
  uint32_t group_[kRowTiles];
  uint32_t run_end_[kRowTiles];
  int run_[kRowTiles];
  Words4 entries_[kRowTiles];
};

// The whole kernel: ceil(row_tiles / kRowTiles) blocks of up to 16 warps with
// Shape::SharedBytes of shared memory.
template <TileEncoding kEncoding, int kBits, class Shape, class S, class T>
GRADQ_DEVICE void TileMatvecBlock(const S& s, const TileMatvecArgs<T>& args) {
  TileMatvecWarp<S, kEncoding, kBits, T, Shape>(s, args).Run();
}

}  // namespace gradq::kernels
