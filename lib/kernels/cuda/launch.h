#pragma once

// The CUDA sides of tile_matmul.h and decode_ops.h: enqueued on `stream` (a cudaStream_t) of the
// current device. Arguments have been checked by the public entries. FAILED_PRECONDITION in a
// build without CUDA (no_cuda.cc), INTERNAL when a launch fails.

#include "absl/status/status.h"
#include "lib/kernels/decode_ops.h"
#include "lib/kernels/tile_matmul.h"

namespace gradq::kernels {

absl::Status TileMatvecCuda(const TileView& matrix, const TileMatmulArgs& args, void* stream);
absl::Status TileMatmulCuda(const TileView& matrix, const TileMatmulArgs& args, void* stream);
absl::Status TileDequantizeCuda(const TileView& matrix, int64_t begin, int64_t end, FloatType type,
                                void* out, void* stream);

absl::Status EmbedTokenCuda(const EmbedTokenArgs& args, void* stream);
absl::Status AddRmsNormCuda(const AddRmsNormArgs& args, void* stream);
absl::Status RotaryAppendCuda(const RotaryAppendArgs& args, void* stream);
absl::Status TokenAttentionCuda(const TokenAttentionArgs& args, void* stream);
absl::Status SwigluVectorCuda(const SwigluArgs& args, void* stream);

}  // namespace gradq::kernels
