#include "lib/kernels/cuda/tile_matmul_launch.cuh"

namespace gradq::kernels {

absl::Status LaunchTileMatmul4Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream) {
  return operands.matrix.encoding == TileEncoding::kLut
             ? LaunchTileMatmul<TileEncoding::kLut, 4>(plan, operands, stream)
             : LaunchTileMatmul<TileEncoding::kAffine, 4>(plan, operands, stream);
}

}  // namespace gradq::kernels
