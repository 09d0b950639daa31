#pragma once

// The CPU sides of tile_matmul.h: the oracle of the CUDA kernels, in plain loops on the calling
// thread. Weights come from the tile order itself (PlaceOfCodeBit), sums are fp64 and are rounded
// once; bf16 activations are taken exactly. Arguments have been checked by the public entries.

#include <cstdint>

#include "lib/kernels/tile_matmul.h"

namespace gradq::kernels {

// Row `r` of Ŵ without outliers, then the outliers' values alone; [in] each. Affine: the exact
// product, as in FORMAT.md.
void DecodeTileRow(const TileView& matrix, int64_t r, float* weights, float* outliers);

// Of TileMatvec and TileMatmul.
void TileMatmulCpu(const TileView& matrix, const TileMatmulArgs& args);
void TileDequantizeCpu(const TileView& matrix, int64_t begin, int64_t end, FloatType type,
                       void* out);

}  // namespace gradq::kernels
