#include "lib/kernels/cuda_device.h"

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda/cuda_status.cuh"

namespace gradq::kernels {
namespace {

// QueryCudaDevice must not change which device the calling thread works on.
class DeviceScope {
 public:
  DeviceScope() { valid_ = cudaGetDevice(&previous_) == cudaSuccess; }
  ~DeviceScope() {
    if (valid_) cudaSetDevice(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
  bool valid_ = false;
};

}  // namespace

absl::StatusOr<int> CudaDeviceCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) {
    cudaGetLastError();
    return 0;
  }
  if (error == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    // The runtime says the same of no driver and of an old one; only an old one has a version.
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return 0;
    return absl::UnavailableError(
        StrCat("CUDA driver older than the runtime: ", driver, ", ", CUDART_VERSION));
  }
  GRADQ_RETURN_IF_ERROR(FromCuda(error, "cannot count CUDA devices"));
  return count;
}

absl::StatusOr<CudaDevice> QueryCudaDevice(int ordinal) {
  GRADQ_ASSIGN_OR_RETURN(const int count, CudaDeviceCount());
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(
        StrCat("no such CUDA device: cuda:", ordinal, ", ", count, " devices"));
  }
  const DeviceScope scope;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaSetDevice(ordinal), "cannot use CUDA device"));
  cudaDeviceProp properties;
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaGetDeviceProperties(&properties, ordinal), "cannot query CUDA device"));
  size_t free = 0;
  size_t total = 0;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaMemGetInfo(&free, &total), "cannot query CUDA memory"));
  CudaDevice device;
  device.name = properties.name;
  device.compute_major = properties.major;
  device.compute_minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.total_bytes = static_cast<int64_t>(total);
  device.free_bytes = static_cast<int64_t>(free);
  return device;
}

}  // namespace gradq::kernels
