#include "lib/base/status_macros.h"
#include "lib/inference/compute_queue.h"

namespace gradq {

c10::Stream ComputeStream(c10::Device device) {
  GRADQ_CHECK(device.is_cpu());
  return c10::Stream(c10::Stream::DEFAULT, device);
}

kernels::Queue ComputeQueue(c10::Device device) {
  GRADQ_CHECK(device.is_cpu());
  return kernels::Queue::Cpu();
}

void ReleaseCachedMemory(c10::Device /*device*/) {}

}  // namespace gradq
