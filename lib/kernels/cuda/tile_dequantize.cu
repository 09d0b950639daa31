#include "lib/kernels/cuda/tile_dequantize.cuh"

#include "lib/kernels/cuda/cuda_status.cuh"
#include "lib/kernels/cuda/launch.h"
#include "lib/kernels/cuda/simt_device.cuh"

namespace gradq::kernels {
namespace {

template <TileEncoding kEncoding, int kBits, class T>
__global__ void __launch_bounds__(kDequantizeWarps* kWarpLanes, 3)
    TileDequantizeKernel(const __grid_constant__ TileDequantizeArgs<T> args) {
  const DeviceSimt s;
  TileDequantizeWarp<DeviceSimt, kEncoding, kBits, T>(s, args).Run();
}

template <TileEncoding kEncoding, int kBits>
absl::Status Launch(const TileView& matrix, int64_t begin, int64_t end, FloatType type, void* out,
                    cudaStream_t stream) {
  WithElementType(type, [&](auto element) {
    using T = decltype(element);
    const TileDequantizeArgs<T> args = {matrix, begin, end, static_cast<T*>(out)};
    const LaunchShape shape = ShapeOfTileDequantize(args);
    TileDequantizeKernel<kEncoding, kBits, T>
        <<<static_cast<unsigned>(shape.grid_x), shape.threads, shape.shared_bytes, stream>>>(args);
  });
  return LaunchStatus("tile dequantize");
}

}  // namespace

absl::Status TileDequantizeCuda(const TileView& matrix, int64_t begin, int64_t end, FloatType type,
                                void* out, void* stream) {
  auto* const queue = static_cast<cudaStream_t>(stream);
  if (matrix.encoding == TileEncoding::kLut) {
    if (matrix.bits == 2)
      return Launch<TileEncoding::kLut, 2>(matrix, begin, end, type, out, queue);
    if (matrix.bits == 3)
      return Launch<TileEncoding::kLut, 3>(matrix, begin, end, type, out, queue);
    return Launch<TileEncoding::kLut, 4>(matrix, begin, end, type, out, queue);
  }
  if (matrix.bits == 2)
    return Launch<TileEncoding::kAffine, 2>(matrix, begin, end, type, out, queue);
  if (matrix.bits == 3)
    return Launch<TileEncoding::kAffine, 3>(matrix, begin, end, type, out, queue);
  if (matrix.bits == 4)
    return Launch<TileEncoding::kAffine, 4>(matrix, begin, end, type, out, queue);
  return Launch<TileEncoding::kAffine, 8>(matrix, begin, end, type, out, queue);
}

}  // namespace gradq::kernels
