#include "lib/base/status_macros.h"
#include "lib/inference/compute_queue.h"

namespace gradq {

kernels::Queue ComputeQueue(c10::Device device) {
  GRADQ_CHECK(device.is_cpu());
  return kernels::Queue::Cpu();
}

}  // namespace gradq
