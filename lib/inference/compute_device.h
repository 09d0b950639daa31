#pragma once

// From the words of a command line to what libtorch and our kernels compute with, and refusals that
// say why. Used by Model::Load and CheckComputeDevice (model.h). Thread-safe.

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/inference/model.h"
#include "lib/kernels/cuda_device.h"

namespace gradq {

// "cpu" or "cuda:N"; INVALID_ARGUMENT.
absl::StatusOr<c10::Device> ParseDevice(const std::string& device);
// The type that a model on `device` computes in.
c10::ScalarType ScalarTypeOf(ComputeType type, c10::Device device);
// FAILED_PRECONDITION naming device and capability when our kernels need a newer one.
absl::Status CheckCapability(const std::string& device, const kernels::CudaDevice& properties);
// Before model `path` is loaded: OK for the CPU and where `needed` bytes are free: by
// options.free_bytes, or on CUDA by the driver. RESOURCE_EXHAUSTED with both numbers.
absl::Status CheckRoom(const LoadOptions& options, std::string_view path, c10::Device device,
                       int64_t needed);

}  // namespace gradq
