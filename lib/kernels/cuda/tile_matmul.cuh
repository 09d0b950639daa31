#pragma once

// y = x · Ŵᵀ + bias of 17 .. 1024 tokens on a machine of simt.cuh: decoded weights are reused for
// many tokens. A block of eight warps makes Shape::kRows x Shape::kTokens outputs. Weights are the
// A operand of mma.m16n8k16: a warp decodes one window (64 columns) of two row tiles in registers,
// with codes straight from global memory, adds the window's outliers (window_outliers.cuh: their
// sum with the weight is rounded to fp16), and multiplies them with all of its tokens; half of the
// warps decode one window ahead, so that tensor cores don't wait for decoding. Activations are the
// B operand and come by way of shared memory, some windows ahead. Partial sums of warps
// that split the columns are added in the order of the warps: no atomics, and y depends on nothing
// but sizes and the shape.

#include <cstdint>

#include "lib/kernels/cuda/decode_elements.cuh"
#include "lib/kernels/cuda/decode_fragment.cuh"
#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/cuda/tile_matmul_plan.h"
#include "lib/kernels/cuda/window_outliers.cuh"

namespace gradq::kernels {

// x, bias and y are fp16, or bf16: the type matters only where memory is read and written, so it is
// no constant of the kernel.
struct TileMatmulOperands {
  TileView matrix;
  const uint16_t* x;     // [batch, in]
  const uint16_t* bias;  // [out] or null
  uint16_t* y;           // [batch, out]
  int batch;
  bool bfloat16;
};

// One warp of a block; lane = 4 · g + t as in tile_layout.h.
template <class S, TileEncoding kEncoding, int kBits, class Shape>
class TileMatmulWarp {
 public:
  GRADQ_DEVICE TileMatmulWarp(const S& s, const TileMatmulOperands& operands)
      : s_(s),
        operands_(operands),
        in_(static_cast<int>(operands.matrix.in_features)),
        lane_(s.thread() % kWarpLanes),
        row_warp_(s.thread() / kWarpLanes % Shape::kRowWarps),
        split_(s.thread() / kWarpLanes / Shape::kRowWarps),
        first_tile_((s.block_x() * Shape::kRowWarps + row_warp_) * 2),
        has_rows_(first_tile_ < operands.matrix.row_tiles),
        first_token_(static_cast<int>(s.block_y()) * Shape::kTokens),
        decodes_ahead_(s.thread() >= Shape::kThreads / 2),
        vectors_(in_ % 8 == 0 && reinterpret_cast<uintptr_t>(operands.x) % sizeof(Words4) == 0),
        outliers_(operands.matrix.outlier_begin != nullptr),
        image_(s,
               s.shared() + Shape::kStages * Shape::kStageBytes +
                   s.thread() / kWarpLanes * kOutlierImageBytes,
               lane_) {}

  GRADQ_DEVICE void Run() {
    const int chunks = static_cast<int>(operands_.matrix.chunks);
    const int rounds = (chunks + Shape::kSplitWarps - 1) / Shape::kSplitWarps;
    const int stages = rounds * kWindows;
    GRADQ_UNROLL
    for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
      if (stage < stages) CopyTokens(stage);
      s_.CommitCopies();
    }
    FetchFirst();
    if (decodes_ahead_) DecodeWindow(0, 0, 0);
    for (int first = 0; first < rounds; first += kDepth) {
      GRADQ_UNROLL
      for (int slot = 0; slot < kDepth; ++slot) {
        if (first + slot >= rounds) break;
        GRADQ_UNROLL
        for (int w = 0; w < kWindows; ++w) {
          const int stage = (first + slot) * kWindows + w;
          // All copies but those of the stages behind this one have landed, here and, after the
          // Sync, everywhere; and nobody reads the stage before this one any more.
          s_.template WaitCopies<Shape::kStages - 2>();
          if (operands_.bfloat16) ConvertTokens(stage);
          s_.Sync();
          if (stage + Shape::kStages - 1 < stages) CopyTokens(stage + Shape::kStages - 1);
          s_.CommitCopies();
          if (!decodes_ahead_) DecodeWindow(slot, stage, w);
          if (HasWindow(stage)) MultiplyTokens(stage);
          if (decodes_ahead_ && stage + 1 < stages) {
            DecodeWindow((slot + (w + 1) / kWindows) % kDepth, stage + 1, (w + 1) % kWindows);
          }
        }
      }
    }
    s_.Sync();
    Join();
  }

 private:
  using Decoder = TileDecoder<S, kEncoding, kBits>;
  static constexpr int kWindows = WindowsPerChunk(kBits);
  static constexpr int kVectors = VectorsPerChunk(kBits);
  // Chunks whose codes are in registers or under way. A vector is fetched anew as soon as its last
  // code is decoded; then two windows pass until it is needed, one at 8 bits and at 4 bits with 64
  // tokens, where a window takes longer. At 3 bits a chunk has four windows, so that one chunk is
  // enough.
  static constexpr int kDepth = kBits == 3 ? 1 : kBits == 4 && Shape::kBatchTiles == 4 ? 3 : 2;
  static constexpr int kUnits = 8;  // of 16 bytes, in a token's 64 columns
  static constexpr int kTokensAtOnce = Shape::kThreads / kUnits;

  // The first column that warps of `split` multiply in a stage.
  GRADQ_DEVICE int ColumnOf(int stage, int split) const {
    // Unsigned, so that dividing by powers of 2 takes no care of signs.
    const auto at = static_cast<uint32_t>(stage);
    const uint32_t first = at / kWindows * (Shape::kSplitWarps * kWindows) + at % kWindows;
    return static_cast<int>(first + split * kWindows) * kWindowColumns;
  }
  // Of the warp's two. In place of what is behind the last one that is decoded once more, and
  // nothing is stored.
  GRADQ_DEVICE int64_t Tile(int i) const {
    const int64_t tile = first_tile_ + i;
    return tile < operands_.matrix.row_tiles ? tile : operands_.matrix.row_tiles - 1;
  }

  // Where 16 bytes of a stage lie. Neighbouring units change places in odd tokens: a quarter of a
  // warp, which shared memory serves at once, then reads (MultiplyTokens) units 2t + h of an even
  // token and 2t + 1 - h of an odd one, t = 0 .. 3, which are all 32 banks, once.
  GRADQ_DEVICE char* Unit(int stage, int split, int token, int unit) const {
    const uint32_t slot = static_cast<uint32_t>(stage) % Shape::kStages;
    return s_.shared() + slot * Shape::kStageBytes +
           (split * Shape::kTokens + token) * (kWindowColumns * 2) + (unit ^ (token & 1)) * 16;
  }
  // use(split, step) for the units of a stage that this thread copies: unit ThreadUnit() of token
  // ThreadToken() + 32 · step.
  template <class Use>
  GRADQ_DEVICE void ForUnits(const Use& use) const {
    GRADQ_UNROLL
    for (int split = 0; split < Shape::kSplitWarps; ++split) {
      GRADQ_UNROLL
      for (int step = 0; step < Shape::kTokens / kTokensAtOnce; ++step) use(split, step);
    }
  }
  GRADQ_DEVICE int ThreadUnit() const { return s_.thread() % kUnits; }
  GRADQ_DEVICE int ThreadToken() const { return s_.thread() / kUnits; }

  // Begins to copy the activations of a stage; zeros beyond `batch` and `in`.
  GRADQ_DEVICE void CopyTokens(int stage) const {
    if (vectors_) {
      const int first = first_token_ + ThreadToken();
      const uint16_t* const from = operands_.x + int64_t{first} * in_ + 8 * ThreadUnit();
      ForUnits([&](int split, int step) {
        const int column = ColumnOf(stage, split);
        const bool valid =
            first + kTokensAtOnce * step < operands_.batch && column + 8 * ThreadUnit() < in_;
        char* const to = Unit(stage, split, ThreadToken() + kTokensAtOnce * step, ThreadUnit());
        s_.CopyAsync(to, valid ? from + int64_t{kTokensAtOnce} * step * in_ + column : operands_.x,
                     valid);
      });
      return;
    }
    // Rare, so it is kept small rather than fast: the number of threads is no constant here.
    for (int i = s_.thread(); i < Shape::kStageBytes / 16; i += s_.threads()) {
      const int token = i / kUnits % Shape::kTokens;
      const int split = i / kUnits / Shape::kTokens;
      const int column = ColumnOf(stage, split) + i % kUnits * 8;
      Words4 words;
      GRADQ_UNROLL
      for (int w = 0; w < 4; ++w)
        words.word[w] = Element(token, column + 2 * w) | Element(token, column + 2 * w + 1) << 16;
      *reinterpret_cast<Words4*>(Unit(stage, split, token, i % kUnits)) = words;
    }
  }
  GRADQ_DEVICE uint32_t Element(int token, int column) const {
    const int64_t row = first_token_ + token;
    return row < operands_.batch && column < in_ ? operands_.x[row * in_ + column] : 0;
  }

  // bf16 -> fp16, each thread what it has copied itself.
  GRADQ_DEVICE void ConvertTokens(int stage) const {
    ForUnits([&](int split, int step) {
      auto* const at = reinterpret_cast<Words4*>(
          Unit(stage, split, ThreadToken() + kTokensAtOnce * step, ThreadUnit()));
      Words4 words = s_.Load(at);
      GRADQ_UNROLL
      for (int w = 0; w < 4; ++w) {
        const uint32_t pair = words.word[w];
        words.word[w] = s_.PackHalf2(FloatOf(pair << 16), FloatOf(pair & 0xffff0000));
      }
      *at = words;
    });
  }

  // Everything that the first window needs.
  GRADQ_DEVICE void FetchFirst() {
    GRADQ_UNROLL
    for (int i = 0; i < 2; ++i) {
      GRADQ_UNROLL
      for (int slot = 0; slot < kDepth; ++slot) {
        GRADQ_UNROLL
        for (int v = 0; v < kVectors; ++v) FetchCodes(slot, slot, i, v);
      }
      decoder_[i].Load(s_, operands_.matrix, Tile(i), lane_);
      FetchNumbers(0, i);
      if (outliers_) {
        entries_[i] = FindOutliers(operands_.matrix, Tile(i), ColumnOf(0, split_) / kWindowColumns);
        FetchOutliers(operands_.matrix, lane_, &entries_[i]);
        next_entries_[i] =
            FindOutliers(operands_.matrix, Tile(i), ColumnOf(1, split_) / kWindowColumns);
      }
      GRADQ_UNROLL
      for (int j = 0; j < Shape::kBatchTiles; ++j) {
        GRADQ_UNROLL
        for (int r = 0; r < 4; ++r) sum_[i][j][r] = 0;
      }
    }
    if (outliers_) image_.Clear();
  }

  GRADQ_DEVICE void FetchNumbers(int stage, int i) {
    const int column = ColumnOf(stage, split_) + lane_ % 4 * kLaneColumns;
    numbers_[i] = decoder_[i].Fetch(operands_.matrix, Tile(i), lane_, column);
  }

  GRADQ_DEVICE void FetchCodes(int slot, int round, int i, int v) {
    const int64_t chunk = int64_t{round} * Shape::kSplitWarps + split_;
    if (chunk >= operands_.matrix.chunks) return;
    const Words4* from = operands_.matrix.codes +
                         ((Tile(i) * operands_.matrix.chunks + chunk) * kVectors + v) * kWarpLanes +
                         lane_;
    // Not as a stream: several blocks over the batch read the same codes.
    const Words4 words = s_.Load(from);
    GRADQ_UNROLL
    for (int word = 0; word < 4; ++word) code_[slot][i][4 * v + word] = words.word[word];
  }

  // The window of a stage, which is window `w` of the chunk in `slot`; then asks for what the next
  // ones need.
  GRADQ_DEVICE void DecodeWindow(int slot, int stage, int w) {
    if (!HasWindow(stage)) return;
    GRADQ_UNROLL
    for (int i = 0; i < 2; ++i) {
      decoder_[i].Decode(s_, numbers_[i], code_[slot][i] + w * kBits, &weights_[i]);
      FetchNumbers(stage + 1, i);
      GRADQ_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        if ((4 * v + 3) / kBits == w) FetchCodes(slot, stage / kWindows + kDepth, i, v);
      }
    }
    if (!outliers_) return;
    GRADQ_UNROLL
    for (int i = 0; i < 2; ++i) AddOutliers(stage, i);
  }
  // Padding has none, and neither have warps without rows.
  GRADQ_DEVICE bool HasWindow(int stage) const {
    return has_rows_ && ColumnOf(stage, split_) < in_;
  }

  GRADQ_DEVICE void AddOutliers(int stage, int i) {
    image_.ForSteps(operands_.matrix, entries_[i], [&](int step, const Words4& less) {
      GRADQ_UNROLL
      for (int r = 0; r < 4; ++r)
        weights_[i].a[step][r] = s_.SubHalf2(weights_[i].a[step][r], less.word[r]);
    });
    entries_[i] = next_entries_[i];
    FetchOutliers(operands_.matrix, lane_, &entries_[i]);
    next_entries_[i] =
        FindOutliers(operands_.matrix, Tile(i), ColumnOf(stage + 2, split_) / kWindowColumns);
  }

  // Lane (g, t) reads columns 16·t .. 16·t + 15 of token g of each batch tile, eight at a time,
  // which are B of two mma per row tile. Four batch tiles between two mma into the same sums.
  GRADQ_DEVICE void MultiplyTokens(int stage) {
    const int g = lane_ / 4;
    const int t = lane_ % 4;
    GRADQ_UNROLL
    for (int h = 0; h < 2; ++h) {
      GRADQ_UNROLL
      for (int first = 0; first < Shape::kBatchTiles; first += 4) {
        Words4 x[4];
        GRADQ_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int token = (first + j) * 8 + g;
          x[j] = s_.Load(reinterpret_cast<const Words4*>(Unit(stage, split_, token, 2 * t + h)));
        }
        GRADQ_UNROLL
        for (int k = 0; k < 2; ++k) {
          GRADQ_UNROLL
          for (int j = 0; j < 4; ++j) {
            const uint32_t b[2] = {x[j].word[2 * k], x[j].word[2 * k + 1]};
            GRADQ_UNROLL
            for (int i = 0; i < 2; ++i) s_.Mma(sum_[i][first + j], weights_[i].a[2 * h + k], b);
          }
        }
      }
    }
  }

  // The warps' sums meet in shared memory, [split][token][row]; then every thread adds up some
  // outputs, neighbouring threads those of neighbouring rows.
  GRADQ_DEVICE void Join() const {
    auto* const partial = reinterpret_cast<float*>(s_.shared());
    constexpr int kOfSplit = Shape::kTokens * Shape::kJoinStride;
    GRADQ_UNROLL
    for (int i = 0; i < 2; ++i) {
      GRADQ_UNROLL
      for (int j = 0; j < Shape::kBatchTiles; ++j) {
        GRADQ_UNROLL
        for (int r = 0; r < 4; ++r) {
          // Register r of C: row g or g + 8, token 2t or 2t + 1.
          const int row = (2 * row_warp_ + i) * kMmaRows + lane_ / 4 + r / 2 * 8;
          const int token = j * 8 + lane_ % 4 * 2 + r % 2;
          partial[split_ * kOfSplit + token * Shape::kJoinStride + row] = sum_[i][j][r];
        }
      }
    }
    s_.Sync();
    for (int i = s_.thread(); i < Shape::kTokens * Shape::kRows; i += Shape::kThreads) {
      const int token = i / Shape::kRows;
      const int64_t row = s_.block_x() * Shape::kRows + i % Shape::kRows;
      if (first_token_ + token >= operands_.batch) return;
      if (row >= operands_.matrix.out_features) continue;
      float sum = 0;
      GRADQ_UNROLL
      for (int split = 0; split < Shape::kSplitWarps; ++split)
        sum += partial[split * kOfSplit + token * Shape::kJoinStride + i % Shape::kRows];
      if (operands_.bias != nullptr) sum += FloatAt(operands_.bias + row);
      StoreAt(operands_.y + (first_token_ + token) * operands_.matrix.out_features + row, sum);
    }
  }

  GRADQ_DEVICE float FloatAt(const uint16_t* from) const {
    return operands_.bfloat16 ? ToFloat(s_, BFloat16{*from}) : ToFloat(s_, Half{*from});
  }
  GRADQ_DEVICE void StoreAt(uint16_t* to, float value) const {
    if (operands_.bfloat16) {
      Store(s_, reinterpret_cast<BFloat16*>(to), value);
    } else {
      Store(s_, reinterpret_cast<Half*>(to), value);
    }
  }

  const S& s_;
  const TileMatmulOperands& operands_;
  const int in_;
  const int lane_;
  const int row_warp_;
  const int split_;
  const int64_t first_tile_;
  const bool has_rows_;
  const int first_token_;
  // Of two warps on a scheduler, w and w + 4, one decodes its next window while the other one
  // multiplies.
  const bool decodes_ahead_;
  const bool vectors_;
  const bool outliers_;
  const OutlierImage<S> image_;
  Decoder decoder_[2];
  uint32_t code_[kDepth][2][4 * kVectors];
  // Of the next window.
  typename Decoder::Numbers numbers_[2];
  WindowOutliers entries_[2];
  WindowOutliers next_entries_[2];  // of the window behind it, without `first`
  WindowFragments weights_[2];
  float sum_[2][Shape::kBatchTiles][4];
};

// The whole kernel: ceil(out / kRows) x ceil(batch / kTokens) blocks of kThreads threads, with
// Shape::SharedBytes of shared memory.
template <TileEncoding kEncoding, int kBits, class Shape, class S>
GRADQ_DEVICE void TileMatmulBlock(const S& s, const TileMatmulOperands& operands) {
  TileMatmulWarp<S, kEncoding, kBits, Shape>(s, operands).Run();
}

}  // namespace gradq::kernels
