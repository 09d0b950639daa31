#pragma once

// Launches the kernels of tile_matmul.cuh. Only for .cu files; every width has its own, as these
// take long to compile.

#include "absl/status/status.h"
#include "lib/base/status_macros.h"
#include "lib/kernels/cuda/cuda_status.cuh"
#include "lib/kernels/cuda/simt_device.cuh"
#include "lib/kernels/cuda/tile_matmul.cuh"
#include "lib/kernels/cuda/tile_matmul_plan.h"
#include "lib/kernels/tile_matmul.h"

namespace gradq::kernels {

template <TileEncoding kEncoding, int kBits, class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    TileMatmulKernel(const __grid_constant__ TileMatmulOperands operands) {
  const DeviceSimt s;
  TileMatmulBlock<kEncoding, kBits, Shape>(s, operands);
}

template <TileEncoding kEncoding, int kBits>
absl::Status LaunchTileMatmul(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                              void* stream) {
  const TileView& matrix = operands.matrix;
  const dim3 grid(static_cast<unsigned>((matrix.out_features + plan.rows() - 1) / plan.rows()),
                  static_cast<unsigned>((operands.batch + plan.tokens() - 1) / plan.tokens()));
  return WithTileMatmulShape(plan, [&](auto shape) -> absl::Status {
    using Shape = decltype(shape);
    constexpr auto kKernel = TileMatmulKernel<kEncoding, kBits, Shape>;
    const int bytes = Shape::SharedBytes(matrix.outlier_begin != nullptr);
    // Beyond 48 KB a kernel has to ask first, once per device: every launch does.
    GRADQ_RETURN_IF_ERROR(
        FromCuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                 "no shared memory for the tile matmul"));
    kKernel<<<grid, Shape::kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(operands);
    return LaunchStatus("tile matmul");
  });
}

// One per width, for both of its encodings.
absl::Status LaunchTileMatmul2Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream);
absl::Status LaunchTileMatmul3Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream);
absl::Status LaunchTileMatmul4Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream);
absl::Status LaunchTileMatmul8Bit(const TileMatmulPlan& plan, const TileMatmulOperands& operands,
                                  void* stream);

}  // namespace gradq::kernels
