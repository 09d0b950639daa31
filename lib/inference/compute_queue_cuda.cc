#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <map>

#include "lib/inference/compute_queue.h"

namespace gradq {

c10::Stream ComputeStream(c10::Device device) {
  if (device.is_cpu()) return c10::Stream(c10::Stream::DEFAULT, device);
  static std::map<c10::DeviceIndex, c10::Stream> streams;
  const auto found = streams.find(device.index());
  if (found != streams.end()) return found->second;
  const c10::Stream made =
      c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()).unwrap();
  return streams.emplace(device.index(), made).first->second;
}

kernels::Queue ComputeQueue(c10::Device device) {
  if (device.is_cpu()) return kernels::Queue::Cpu();
  return kernels::Queue::Cuda(c10::cuda::getCurrentCUDAStream(device.index()).stream());
}

void ReleaseCachedMemory(c10::Device device) {
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
}

}  // namespace gradq
