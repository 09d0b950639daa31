#pragma once

// Errors of the CUDA runtime as Status. Only for .cu files.

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "lib/base/strings.h"

namespace gradq::kernels {

// Takes the runtime's last error of this thread with it, so that later launches don't report it.
inline absl::Status FromCuda(cudaError_t error, const char* action) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string message = StrCat(action, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

// Of the launch just made.
inline absl::Status LaunchStatus(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(StrCat("cannot launch ", kernel, ": ", cudaGetErrorString(error)));
}

}  // namespace gradq::kernels
