#pragma once

// Launches the kernels of tile_matvec.cuh. Only for .cu files; every width has its own, as these
// take long to compile.

#include "absl/status/status.h"
#include "lib/kernels/cuda/cuda_status.cuh"
#include "lib/kernels/cuda/simt_device.cuh"
#include "lib/kernels/cuda/tile_matvec.cuh"
#include "lib/kernels/cuda/tile_matvec_plan.h"
#include "lib/kernels/tile_matmul.h"

namespace gradq::kernels {

template <TileEncoding kEncoding, int kBits, class Shape, class T>
__global__ void __launch_bounds__(kTileMatvecWarps* kWarpLanes)
    TileMatvecKernel(const __grid_constant__ TileMatvecArgs<T> args) {
  TileMatvecBlock<kEncoding, kBits, Shape>(DeviceSimt(), args);
}

template <TileEncoding kEncoding, int kBits, class T>
absl::Status LaunchTileMatvec(const TileMatvecPlan& plan, const TileView& matrix,
                              const TileMatmulArgs& args, cudaStream_t stream) {
  const TileMatvecArgs<T> kernel_args = {matrix, static_cast<const T*>(args.x),
                                         static_cast<const T*>(args.bias), static_cast<T*>(args.y),
                                         static_cast<int>(args.batch)};
  const auto blocks =
      static_cast<unsigned>((matrix.row_tiles + plan.row_tiles - 1) / plan.row_tiles);
  WithTileMatvecShape<kEncoding, kBits>(plan, [&](auto shape) {
    using Shape = decltype(shape);
    TileMatvecKernel<kEncoding, kBits, Shape, T>
        <<<blocks, plan.warps * kWarpLanes, Shape::SharedBytes(plan.warps), stream>>>(kernel_args);
  });
  return LaunchStatus("tile matvec");
}

template <TileEncoding kEncoding, int kBits>
absl::Status LaunchTileMatvec(const TileMatvecPlan& plan, const TileView& matrix,
                              const TileMatmulArgs& args, void* stream) {
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  return args.type == FloatType::kFloat16
             ? LaunchTileMatvec<kEncoding, kBits, Half>(plan, matrix, args, cuda_stream)
             : LaunchTileMatvec<kEncoding, kBits, BFloat16>(plan, matrix, args, cuda_stream);
}

// One per width, for both of its encodings.
absl::Status LaunchTileMatvec2Bit(const TileMatvecPlan& plan, const TileView& matrix,
                                  const TileMatmulArgs& args, void* stream);
absl::Status LaunchTileMatvec3Bit(const TileMatvecPlan& plan, const TileView& matrix,
                                  const TileMatmulArgs& args, void* stream);
absl::Status LaunchTileMatvec4Bit(const TileMatvecPlan& plan, const TileView& matrix,
                                  const TileMatmulArgs& args, void* stream);
absl::Status LaunchTileMatvec8Bit(const TileMatvecPlan& plan, const TileView& matrix,
                                  const TileMatmulArgs& args, void* stream);

}  // namespace gradq::kernels
