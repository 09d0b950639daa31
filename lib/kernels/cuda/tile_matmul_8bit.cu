#include "lib/kernels/cuda/tile_matmul_launch.cuh"

namespace gradq::kernels {

absl::Status LaunchTileMatmul8Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream) {
  return LaunchTileMatmul<TileEncoding::kAffine, 8>(plan, operands, stream);
}

}  // namespace gradq::kernels
