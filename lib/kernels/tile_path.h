#pragma once

// Which of our own ways multiplies a batch with a packed linear on a GPU: a table of batches per
// encoding and width. Pure. Used by lib/inference and the bench lut_matmul_cuda, whose --table
// prints which path was the fastest.

#include <cstdint>
#include <span>

#include "lib/kernels/cuda/tile_layout.h"

namespace gradq::kernels {

enum class TilePath {
  kMatvec,      // TileMatvec
  kMatmul,      // TileMatmul
  kDequantize,  // TileDequantize, then cuBLAS
};

struct TilePathRow {
  TileEncoding encoding;
  int bits;
  // The largest batches of TileMatvec and of TileMatmul; beyond is TileDequantize.
  int64_t matvec_batch;
  int64_t matmul_batch;
};
// A row for every encoding and width with kernels.
std::span<const TilePathRow> TilePathTable();

// `matrix`: its encoding and width are in the table.
TilePath ChooseTilePath(const TileView& matrix, int64_t batch);

}  // namespace gradq::kernels
