#pragma once

// What this machine's CUDA devices are, for workers that register and for plans. A build without
// CUDA has the same functions (no_cuda.cc): it finds no device. Thread-safe.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace gradq::kernels {

struct CudaDevice {
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  int multiprocessors = 0;
  int64_t total_bytes = 0;
  // At the time of the call, over all processes.
  int64_t free_bytes = 0;
};

// Devices the driver shows; 0 without a driver, without a device and in a build without CUDA.
// UNAVAILABLE when the driver is older than the runtime or in error.
absl::StatusOr<int> CudaDeviceCount();

// INVALID_ARGUMENT when there is no device `ordinal`; FAILED_PRECONDITION in a build without CUDA.
// Creates a context on the device, which costs some hundred MB of its memory.
absl::StatusOr<CudaDevice> QueryCudaDevice(int ordinal);

}  // namespace gradq::kernels
