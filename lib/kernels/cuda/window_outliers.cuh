#pragma once

// Outliers of one window (16 x 64 weights) added to weights that the lanes of a warp have decoded.
// A register can't be picked by a number, so the warp writes the outliers into an image of the
// lanes' registers in shared memory, where all else is zero, and every lane reads its own part.
// Each weight has one outlier at most, so the order of writes doesn't matter. Used where decoded
// weights are worth that much: TileMatmul and TileDequantize.

#include <cstdint>

#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/cuda/tile_layout.h"

namespace gradq::kernels {

// One half per weight, in the order [step][lane][register of A][low, high] of WindowFragments.
inline constexpr int kOutlierImageBytes = kMmaRows * kWindowColumns * 2;

GRADQ_HOST_DEVICE constexpr uint32_t OutlierPlace(uint32_t entry) {
  const uint32_t row = entry >> 12 & 15;
  const uint32_t column = entry % kWindowColumns;
  const uint32_t lane = row % 8 * 4 + column / kLaneColumns;
  const uint32_t step = column % kLaneColumns / 4;
  const uint32_t a = column % 4 / 2 * 2 + row / 8;
  return ((step * kWarpLanes + lane) * 4 + a) * 2 + column % 2;
}

// Which entries a window has, and this lane's first one (0: none): fetched before they are needed.
struct WindowOutliers {
  uint32_t begin = 0;
  uint32_t end = 0;
  uint32_t first = 0;
};

// None of a window beyond the last one. The view has outliers.
GRADQ_DEVICE WindowOutliers FindOutliers(const TileView& view, int64_t tile, int64_t window) {
  WindowOutliers outliers;
  if (window >= WindowsOf(view)) return outliers;
  const uint32_t* starts = OutlierWindows(view) + tile * WindowsOf(view) + window;
  outliers.begin = starts[0];
  outliers.end = starts[1];
  return outliers;
}

GRADQ_DEVICE void FetchOutliers(const TileView& view, int lane, WindowOutliers* outliers) {
  const uint32_t at = outliers->begin + static_cast<uint32_t>(lane);
  outliers->first = at < outliers->end ? view.outliers[at] : 0;
}

// The image of a warp.
template <class S>
class OutlierImage {
 public:
  // `memory`: kOutlierImageBytes of shared memory of this warp alone, 16-byte aligned.
  GRADQ_DEVICE OutlierImage(const S& s, char* memory, int lane)
      : s_(s), halves_(reinterpret_cast<uint16_t*>(memory)), lane_(lane) {}

  // Before the first window. All lanes call this.
  GRADQ_DEVICE void Clear() const {
    GRADQ_UNROLL
    for (int step = 0; step < 4; ++step) *Part(step) = Words4{};
    s_.SyncWarp();
  }

  // use(step, words): `words` are the lane's outliers of a[step] with their signs turned, so that
  // they are to be subtracted: x - (+0) is x for every x. Not called where the window has none. All
  // lanes call this with the same window.
  template <class Use>
  GRADQ_DEVICE void ForSteps(const TileView& view, const WindowOutliers& outliers,
                             const Use& use) const {
    if (outliers.begin == outliers.end) return;
    Write(view, outliers, true);
    s_.SyncWarp();
    GRADQ_UNROLL
    for (int step = 0; step < 4; ++step) use(step, s_.Load(Part(step)));
    s_.SyncWarp();
    Write(view, outliers, false);
    s_.SyncWarp();
  }

 private:
  GRADQ_DEVICE Words4* Part(int step) const {
    return reinterpret_cast<Words4*>(halves_) + step * kWarpLanes + lane_;
  }

  // The entries' values, or zeros in their places.
  GRADQ_DEVICE void Write(const TileView& view, const WindowOutliers& outliers, bool values) const {
    uint32_t entry = outliers.first;
    for (uint32_t at = outliers.begin + static_cast<uint32_t>(lane_);;) {
      // What is left of a group has the place of a weight that may have an outlier of its own.
      if (entry << 1 >> 17 != 0)
        halves_[OutlierPlace(entry)] = values ? static_cast<uint16_t>(entry >> 16 ^ 0x8000) : 0;
      at += kWarpLanes;
      if (at >= outliers.end) break;
      entry = view.outliers[at];
    }
  }

  const S& s_;
  uint16_t* const halves_;
  const int lane_;
};

}  // namespace gradq::kernels
