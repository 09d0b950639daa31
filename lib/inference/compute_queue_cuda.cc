#include <c10/cuda/CUDAStream.h>

#include "lib/inference/compute_queue.h"

namespace gradq {

kernels::Queue ComputeQueue(c10::Device device) {
  if (device.is_cpu()) return kernels::Queue::Cpu();
  return kernels::Queue::Cuda(c10::cuda::getCurrentCUDAStream(device.index()).stream());
}

}  // namespace gradq
