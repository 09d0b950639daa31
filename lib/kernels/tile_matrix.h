#pragma once

// A packed linear in the order of the CUDA kernels (cuda/tile_layout.h), on the host: made once at
// load time from the canonical tensors of FORMAT.md, then uploaded. Immutable; any number of
// readers. No CUDA needed.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/sparse_rows.h"

namespace gradq::kernels {

class TileMatrix {
 public:
  TileMatrix() = default;
  // `packed` [out, ceil(in · bits / 32)], `lut` fp16 bits [out, 2^bits]; HasTileKernels. The caller
  // has checked sizes; `sparse` may be empty. `pool` null: all on the calling thread.
  static TileMatrix FromLut(std::span<const uint32_t> packed, std::span<const uint16_t> lut,
                            const SparseRows& sparse, int64_t out_features, int64_t in_features,
                            int bits, ThreadPool* pool);
  // `scale` fp16 bits and `zero_point` [out, ceil(in / group_size)]; group_size a multiple of 16.
  static TileMatrix FromAffine(std::span<const uint32_t> packed, std::span<const uint16_t> scale,
                               std::span<const uint8_t> zero_point, const SparseRows& sparse,
                               int64_t out_features, int64_t in_features, int bits,
                               int64_t group_size, ThreadPool* pool);

  // Sizes, with pointers into this matrix (the host's memory).
  TileView view() const;
  // The arrays behind the pointers of view(), to be copied to a device and pointed at there.
  std::span<const Words4> codes() const { return codes_; }
  std::span<const uint32_t> tables() const { return tables_; }
  std::span<const uint32_t> scales() const { return scales_; }
  std::span<const uint32_t> outlier_begin() const { return outlier_begin_; }
  std::span<const uint32_t> outliers() const { return outliers_; }
  // Of all arrays: what the matrix takes on a device.
  int64_t bytes() const;

 private:
  TileView sizes_;  // without pointers
  std::vector<Words4> codes_;
  std::vector<uint32_t> tables_;
  std::vector<uint32_t> scales_;
  std::vector<uint32_t> outlier_begin_;
  std::vector<uint32_t> outliers_;
};

// TileMatrix::bytes() of a linear with `outliers` entries before it exists, at most one partly
// filled group per row tile and run too much; for plans.
int64_t TileMatrixBytes(TileEncoding encoding, int bits, int64_t out_features, int64_t in_features,
                        int64_t group_size, int64_t outliers);

}  // namespace gradq::kernels
