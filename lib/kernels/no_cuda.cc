#include "absl/status/status.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda_device.h"

namespace gradq::kernels {

absl::StatusOr<int> CudaDeviceCount() { return 0; }

absl::StatusOr<CudaDevice> QueryCudaDevice(int ordinal) {
  return absl::FailedPreconditionError(StrCat("this build has no CUDA: device cuda:", ordinal));
}

}  // namespace gradq::kernels
