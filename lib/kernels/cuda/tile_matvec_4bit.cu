#include "lib/kernels/cuda/tile_matvec_launch.cuh"

namespace gradq::kernels {

absl::Status LaunchTileMatvec4Bit(const TileMatvecPlan& plan, const TileView& matrix,
                                  const TileMatmulArgs& args, void* stream) {
  return matrix.encoding == TileEncoding::kLut
             ? LaunchTileMatvec<TileEncoding::kLut, 4>(plan, matrix, args, stream)
             : LaunchTileMatvec<TileEncoding::kAffine, 4>(plan, matrix, args, stream);
}

}  // namespace gradq::kernels
