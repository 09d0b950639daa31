#pragma once

// Puts a kernel object of decode_ops.cuh or token_attention.cuh on a stream. Only for .cu files.

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "lib/kernels/cuda/cuda_status.cuh"
#include "lib/kernels/cuda/decode_elements.cuh"
#include "lib/kernels/cuda/simt_device.cuh"

namespace gradq::kernels {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    RunKernel(const Kernel kernel) {
  kernel(DeviceSimt());
}

class StreamLaunch {
 public:
  explicit StreamLaunch(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class Kernel>
  absl::Status operator()(const char* name, const LaunchShape& shape, const Kernel& kernel) const {
    const dim3 grid(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y));
    RunKernel<<<grid, shape.threads, shape.shared_bytes, stream_>>>(kernel);
    return LaunchStatus(name);
  }

 private:
  cudaStream_t stream_;
};

}  // namespace gradq::kernels
