#pragma once

// Linears with random codes for benchmarks, in the canonical tensors of FORMAT.md: quick to make,
// the same for the same seed. Pure.

#include <cstdint>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/sparse_rows.h"
#include "lib/kernels/tile_matrix.h"

namespace gradq {

struct RandomLinear {
  kernels::TileEncoding encoding = kernels::TileEncoding::kLut;
  int bits = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;           // kAffine
  std::vector<uint32_t> packed;     // [out, ceil(in · bits / 32)]
  std::vector<uint16_t> lut;        // kLut: fp16 [out, 2^bits], ascending, within ±0.05
  std::vector<uint16_t> scale;      // kAffine: fp16 [out, ceil(in / group_size)]
  std::vector<uint8_t> zero_point;  // of the same size
  kernels::SparseRows sparse;
};

// Every code equally likely. `outlier_percent` of the weights, 0 for none, at evenly random
// columns, get 0.05 to 0.1 added or taken away. Affine groups are of 128 columns.
RandomLinear MakeRandomLinear(kernels::TileEncoding encoding, int bits, int64_t out_features,
                              int64_t in_features, double outlier_percent, uint64_t seed);

// In tile order. `pool` may be null.
kernels::TileMatrix ToTileMatrix(const RandomLinear& linear, ThreadPool* pool);

}  // namespace gradq
