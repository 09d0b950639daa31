#include "lib/kernels/tile_path.h"

#include "lib/base/status_macros.h"
#include "lib/kernels/tile_matmul.h"

namespace gradq::kernels {
namespace {

// Not measured: arithmetic for an H200 (4.3 TB/s, 700 Tflop/s of cuBLAS), times per weight.
// * TileMatmul: tensor cores by mma.sync reach 62 % of cuBLAS, 4.6 fs per token. Decoding comes on
//   top as far as it does not overlap, once per 64 tokens: at 4-bit LUT 2.8 ALU instructions a
//   weight, 2.6 fs per token, elsewhere half of that.
// * TileDequantize writes 2 bytes and reads bits / 8: 0.52 to 0.70 ps. cuBLAS reads 2 bytes (0.54
//   ps) or computes, 2.9 fs per token, whichever takes longer; the latter from 190 tokens on.
// Equal at 300 to 400 tokens with all decoding hidden, at 160 to 200 with none of it hidden.
constexpr TilePathRow kTable[] = {
    {TileEncoding::kLut, 2, kTileMatvecBatch, 256},
    {TileEncoding::kLut, 3, kTileMatvecBatch, 256},
    {TileEncoding::kLut, 4, kTileMatvecBatch, 192},
    {TileEncoding::kAffine, 2, kTileMatvecBatch, 256},
    {TileEncoding::kAffine, 3, kTileMatvecBatch, 256},
    {TileEncoding::kAffine, 4, kTileMatvecBatch, 256},
    {TileEncoding::kAffine, 8, kTileMatvecBatch, 256},
};

}  // namespace

std::span<const TilePathRow> TilePathTable() { return kTable; }

TilePath ChooseTilePath(const TileView& matrix, int64_t batch) {
  for (const TilePathRow& row : kTable) {
    if (row.encoding != matrix.encoding || row.bits != matrix.bits) continue;
    if (batch <= row.matvec_batch) return TilePath::kMatvec;
    return batch <= row.matmul_batch ? TilePath::kMatmul : TilePath::kDequantize;
  }
  GRADQ_CHECK(false);  // no such kernels
  return TilePath::kDequantize;
}

}  // namespace gradq::kernels
