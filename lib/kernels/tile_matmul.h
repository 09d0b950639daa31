#pragma once

// y = x · Ŵᵀ + bias with a packed linear in tile order (tile_matrix.h): on a CUDA stream by tensor
// cores, on the CPU by plain loops (the oracle). Each output is one fixed sum over columns that
// depends on the path and the sizes, not on the run: two runs are bit-equal. Any thread; one
// stream's work is in order. Which path is taken is in tile_path.h.

#include <cstdint>

#include "absl/status/status.h"
#include "lib/kernels/cuda/tile_layout.h"
#include "lib/kernels/queue.h"

namespace gradq::kernels {

// Most tokens of TileMatvec and of TileMatmul.
inline constexpr int64_t kTileMatvecBatch = 16;
inline constexpr int64_t kTileMatmulBatch = 1024;

struct TileMatmulArgs {
  FloatType type = FloatType::kFloat16;  // of x, bias and y: kFloat16 or kBFloat16
  const void* x = nullptr;               // [batch, in]
  int64_t batch = 0;
  const void* bias = nullptr;  // [out], may be null
  void* y = nullptr;           // [batch, out]
};

// Few tokens (1 .. kTileMatvecBatch): every weight is read once, near the rate of memory. fp16
// products of the exact weights (affine: rounded to fp16), fp32 sums; bf16 activations are taken as
// fp16, exactly between 2^-14 and 65504 in magnitude. An activation that is not finite makes its
// token's outputs not finite and no others; beside an outlier NaN may stand where the exact result
// is infinite. INVALID_ARGUMENT for sizes, types or a batch without kernel, INTERNAL when the
// launch fails, FAILED_PRECONDITION for a CUDA queue in a build without CUDA.
absl::Status TileMatvec(const Queue& queue, const TileView& matrix, const TileMatmulArgs& args);
// Many tokens (1 .. kTileMatmulBatch), the same numerics but that a weight with an outlier is their
// sum rounded to fp16: decoded weights are reused from registers.
absl::Status TileMatmul(const Queue& queue, const TileView& matrix, const TileMatmulArgs& args);
// Rows [begin, end) of Ŵ, outliers included, as `type` (rounded once) [end - begin, in]; begin a
// multiple of 16. For products by cuBLAS.
absl::Status TileDequantize(const Queue& queue, const TileView& matrix, int64_t begin, int64_t end,
                            FloatType type, void* out);

}  // namespace gradq::kernels
