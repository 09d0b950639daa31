#include "lib/kernels/cuda/tile_matmul_launch.cuh"

namespace gradq::kernels {

absl::Status LaunchTileMatmul3Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream) {
  return operands.matrix.encoding == TileEncoding::kLut
             ? LaunchTileMatmul<TileEncoding::kLut, 3>(plan, operands, stream)
             : LaunchTileMatmul<TileEncoding::kAffine, 3>(plan, operands, stream);
}

}  // namespace gradq::kernels
