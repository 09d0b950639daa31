#include "lib/base/status_macros.h"
#include "lib/kernels/cuda/launch.h"
#include "lib/kernels/cuda/tile_matvec_launch.cuh"

namespace gradq::kernels {

absl::Status TileMatvecCuda(const TileView& matrix, const TileMatmulArgs& args, void* stream) {
  int device = 0;
  int multiprocessors = 0;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaGetDevice(&device), "no current CUDA device"));
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
               "cannot count multiprocessors"));
  const TileMatvecPlan plan = PlanTileMatvec(matrix.encoding, matrix.bits, matrix.out_features,
                                             args.batch, multiprocessors);
  switch (matrix.bits) {
    case 2:
      return LaunchTileMatvec2Bit(plan, matrix, args, stream);
    case 3:
      return LaunchTileMatvec3Bit(plan, matrix, args, stream);
    case 4:
      return LaunchTileMatvec4Bit(plan, matrix, args, stream);
    default:
      return LaunchTileMatvec8Bit(plan, matrix, args, stream);
  }
}

}  // namespace gradq::kernels
