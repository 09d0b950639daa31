#include "tests/kernels/device_memory.h"

namespace gradq::kernels {
namespace {

absl::Status NoCuda() { return absl::FailedPreconditionError("this build has no CUDA"); }

}  // namespace

absl::StatusOr<int64_t> FreeDeviceBytes() { return NoCuda(); }
absl::Status SynchronizeDevice() { return NoCuda(); }
absl::Status CopyToDevice(void* /*to*/, const void* /*from*/, int64_t /*bytes*/) {
  return NoCuda();
}
absl::StatusOr<DeviceBytes> DeviceBytes::Allocate(int64_t /*bytes*/) { return NoCuda(); }
DeviceBytes::~DeviceBytes() = default;
absl::Status DeviceBytes::Read(void* /*to*/) const { return NoCuda(); }

}  // namespace gradq::kernels
