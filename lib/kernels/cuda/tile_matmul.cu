#include "lib/kernels/cuda/launch.h"
#include "lib/kernels/cuda/tile_matmul_launch.cuh"

namespace gradq::kernels {

absl::Status TileMatmulCuda(const TileView& matrix, const TileMatmulArgs& args, void* stream) {
  const TileMatmulOperands operands = {matrix,
                                       static_cast<const uint16_t*>(args.x),
                                       static_cast<const uint16_t*>(args.bias),
                                       static_cast<uint16_t*>(args.y),
                                       static_cast<int>(args.batch),
                                       args.type == FloatType::kBFloat16};
  const TileMatmulPlan plan = PlanTileMatmul(matrix.bits, matrix.out_features, args.batch);
  switch (matrix.bits) {
    case 2:
      return LaunchTileMatmul2Bit(plan, operands, stream);
    case 3:
      return LaunchTileMatmul3Bit(plan, operands, stream);
    case 4:
      return LaunchTileMatmul4Bit(plan, operands, stream);
    default:
      return LaunchTileMatmul8Bit(plan, operands, stream);
  }
}

}  // namespace gradq::kernels
