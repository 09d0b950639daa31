#include "lib/kernels/cuda/tile_matvec_launch.cuh"

namespace gradq::kernels {

absl::Status LaunchTileMatvec8Bit(const TileMatvecPlan& plan, const TileView& matrix,
                                  const TileMatmulArgs& args, void* stream) {
  return LaunchTileMatvec<TileEncoding::kAffine, 8>(plan, matrix, args, stream);
}

}  // namespace gradq::kernels
