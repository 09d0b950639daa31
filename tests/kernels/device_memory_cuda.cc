#include <cuda_runtime_api.h>

#include "lib/base/strings.h"
#include "lib/kernels/cuda/cuda_status.cuh"
#include "tests/kernels/device_memory.h"

namespace gradq::kernels {
namespace {

constexpr int kPoison = 0xff;
constexpr int kGuard = 0x5a;

absl::Status CheckGuard(const char* at, int64_t bytes, int64_t offset, int64_t size) {
  std::vector<char> guard(bytes);
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaMemcpy(guard.data(), at, bytes, cudaMemcpyDeviceToHost), "cannot read"));
  for (int64_t i = 0; i < bytes; ++i) {
    if (guard[i] != static_cast<char>(kGuard)) {
      return absl::InternalError(
          StrCat("write outside of a device buffer: byte ", offset + i, " of ", size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> FreeDeviceBytes() {
  size_t free = 0;
  size_t total = 0;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaMemGetInfo(&free, &total), "cannot query CUDA memory"));
  return static_cast<int64_t>(free);
}

absl::Status SynchronizeDevice() {
  const cudaError_t error = cudaDeviceSynchronize();
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(StrCat("a kernel failed: ", cudaGetErrorString(error)));
}

absl::Status CopyToDevice(void* to, const void* from, int64_t bytes) {
  GRADQ_RETURN_IF_ERROR(SynchronizeDevice());
  return FromCuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cannot write");
}

absl::StatusOr<DeviceBytes> DeviceBytes::Allocate(int64_t bytes) {
  DeviceBytes made;
  void* base = nullptr;
  const absl::Status status =
      FromCuda(cudaMalloc(&base, bytes + 2 * kGuardBytes), "cannot allocate");
  if (!status.ok()) {
    return absl::Status(status.code(), StrCat(std::string(status.message()), ": ", bytes));
  }
  made.base_ = static_cast<char*>(base);
  made.bytes_ = bytes;
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaMemset(made.base_, kGuard, bytes + 2 * kGuardBytes), "cannot fill"));
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaMemset(made.data(), kPoison, bytes), "cannot fill"));
  return made;
}

DeviceBytes::~DeviceBytes() {
  if (base_ != nullptr) cudaFree(base_);
}

absl::Status DeviceBytes::Read(void* to) const {
  GRADQ_RETURN_IF_ERROR(SynchronizeDevice());
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaMemcpy(to, data(), bytes_, cudaMemcpyDeviceToHost), "cannot read"));
  GRADQ_RETURN_IF_ERROR(CheckGuard(base_, kGuardBytes, -kGuardBytes, bytes_));
  return CheckGuard(data() + bytes_, kGuardBytes, bytes_, bytes_);
}

}  // namespace gradq::kernels
