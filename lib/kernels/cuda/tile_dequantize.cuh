#pragma once

// Rows of Ŵ as T, on a machine of simt.cuh: what tile_dequantize.cu launches. A warp decodes four
// windows (16 x 256 weights) of a row tile; a lane's 16 columns of a row and window are neighbours,
// so it stores them as they are, 32 bytes or more at a time.

#include <cstdint>

#include "lib/kernels/cuda/decode_elements.cuh"
#include "lib/kernels/cuda/decode_fragment.cuh"
#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/cuda/window_outliers.cuh"

namespace gradq::kernels {

// A block's columns, all of one row tile.
inline constexpr int kDequantizeWarps = 8;
inline constexpr int kDequantizeWindows = 4;  // of a warp: whole chunks of every width
inline constexpr int kDequantizeColumns = kDequantizeWarps * kDequantizeWindows * kWindowColumns;

template <class T>
struct TileDequantizeArgs {
  TileView matrix;
  int64_t begin;  // a multiple of 16
  int64_t end;
  T* out;  // [end - begin, in]
};

template <class T>
LaunchShape ShapeOfTileDequantize(const TileDequantizeArgs<T>& args) {
  const int64_t tiles = (args.end - args.begin + kMmaRows - 1) / kMmaRows;
  const int64_t parts = (args.matrix.in_features + kDequantizeColumns - 1) / kDequantizeColumns;
  const bool outliers = args.matrix.outlier_begin != nullptr;
  return {tiles * parts, 1, kDequantizeWarps * kWarpLanes,
          outliers ? kDequantizeWarps * kOutlierImageBytes : 0};
}

template <class S, TileEncoding kEncoding, int kBits, class T>
class TileDequantizeWarp {
 public:
  GRADQ_DEVICE TileDequantizeWarp(const S& s, const TileDequantizeArgs<T>& args)
      : s_(s),
        args_(args),
        in_(static_cast<int>(args.matrix.in_features)),
        lane_(s.thread() % kWarpLanes),
        vectors_(in_ % 8 == 0 && reinterpret_cast<uintptr_t>(args.out) % sizeof(Words4) == 0),
        image_(s, s.shared() + s.thread() / kWarpLanes * kOutlierImageBytes, lane_) {
    const int parts = (in_ + kDequantizeColumns - 1) / kDequantizeColumns;
    const auto block = static_cast<int>(s.block_x());
    tile_ = args.begin / kMmaRows + block / parts;
    first_window_ =
        (block % parts * kDequantizeWarps + s.thread() / kWarpLanes) * kDequantizeWindows;
  }

  GRADQ_DEVICE void Run() {
    if (first_window_ * kWindowColumns >= in_) return;
    decoder_.Load(s_, args_.matrix, tile_, lane_);
    if (args_.matrix.outlier_begin != nullptr) image_.Clear();
    GRADQ_UNROLL
    for (int c = 0; c < kDequantizeWindows / kWindows; ++c) {
      const int64_t chunk = first_window_ / kWindows + c;
      if (chunk >= args_.matrix.chunks) break;
      Words4 codes[kVectors];
      const Words4* from = args_.matrix.codes +
                           (tile_ * args_.matrix.chunks + chunk) * (kVectors * kWarpLanes) + lane_;
      GRADQ_UNROLL
      for (int v = 0; v < kVectors; ++v) codes[v] = s_.LoadStreaming(from + v * kWarpLanes);
      GRADQ_UNROLL
      for (int w = 0; w < kWindows; ++w) {
        uint32_t window[kBits];
        GRADQ_UNROLL
        for (int i = 0; i < kBits; ++i) {
          const int word = w * kBits + i;
          window[i] = codes[word / 4].word[word % 4];
        }
        MakeWindow(chunk * kWindows + w, window);
      }
    }
  }

 private:
  static constexpr int kWindows = WindowsPerChunk(kBits);
  static constexpr int kVectors = VectorsPerChunk(kBits);
  static_assert(kDequantizeWindows % kWindows == 0);

  GRADQ_DEVICE void MakeWindow(int64_t index, const uint32_t* window) {
    const auto column = static_cast<int>(index) * kWindowColumns + lane_ % 4 * kLaneColumns;
    WindowFragments weights;
    decoder_.Decode(s_, args_.matrix, tile_, lane_, column, window, &weights);
    // Of the outliers with their signs turned.
    WindowFragments less = {};
    if (args_.matrix.outlier_begin != nullptr) {
      WindowOutliers outliers = FindOutliers(args_.matrix, tile_, index);
      FetchOutliers(args_.matrix, lane_, &outliers);
      image_.ForSteps(args_.matrix, outliers, [&](int step, const Words4& words) {
        GRADQ_UNROLL
        for (int i = 0; i < 4; ++i) less.a[step][i] = words.word[i];
      });
    }
    GRADQ_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t row = tile_ * kMmaRows + lane_ / 4 + 8 * half;
      if (row >= args_.end) continue;
      GRADQ_UNROLL
      for (int eight = 0; eight < 2; ++eight) StoreColumns(row, column, half, eight, weights, less);
    }
  }

  // Columns column + 8 · eight .. + 7 of `row`.
  GRADQ_DEVICE void StoreColumns(int64_t row, int column, int half, int eight,
                                 const WindowFragments& weights, const WindowFragments& less) {
    float values[8];
    GRADQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int step = 2 * eight + i / 4;
      const int a = i % 4 / 2 * 2 + half;
      values[i] = HalfOf(weights.a[step][a], i % 2) - HalfOf(less.a[step][a], i % 2);
    }
    const int at = column + 8 * eight;
    StoreEight(s_, args_.out + (row - args_.begin) * in_ + at, values, in_ - at, vectors_);
  }

  GRADQ_DEVICE float HalfOf(uint32_t pair, int which) const {
    return s_.HalfToFloat(static_cast<uint16_t>(pair >> (16 * which)));
  }

  const S& s_;
  const TileDequantizeArgs<T>& args_;
  const int in_;
  const int lane_;
  const bool vectors_;
  const OutlierImage<S> image_;
  int64_t tile_;
  int first_window_;
  TileDecoder<S, kEncoding, kBits> decoder_;
};

}  // namespace gradq::kernels
