#pragma once

// Where our kernels run for tensors of a device: the stream on which ATen's operations of the
// calling thread run, too. A build without CUDA has the same function (compute_queue_none.cc).

#include <c10/core/Device.h>

#include "lib/kernels/queue.h"

namespace gradq {

kernels::Queue ComputeQueue(c10::Device device);

}  // namespace gradq
