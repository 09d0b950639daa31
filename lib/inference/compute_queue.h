#pragma once

// Where work for a device is enqueued. gradq-inference uses one stream per device, not the default
// one, so that a step can be recorded on it; ATen's operations and our kernels follow it while a
// c10::StreamGuard of ComputeStream lives. Builds without CUDA have the same functions
// (compute_queue_none.cc). Compute thread.

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "lib/kernels/queue.h"

namespace gradq {

c10::Stream ComputeStream(c10::Device device);
// Of the stream that is current on the calling thread.
kernels::Queue ComputeQueue(c10::Device device);
// Gives memory that libtorch keeps for later allocations back to the device.
void ReleaseCachedMemory(c10::Device device);

}  // namespace gradq
