#include "lib/inference/compute_device.h"

#include <ATen/Context.h>

#include <charconv>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/inference/compute_queue.h"

namespace gradq {
namespace {

// What the kernels are compiled for.
constexpr int kLeastMajor = 8;

}  // namespace

absl::StatusOr<c10::Device> ParseDevice(const std::string& device) {
  if (device == "cpu") return c10::Device(c10::kCPU);
  int ordinal = -1;
  if (device.starts_with("cuda:")) {
    const char* end = device.data() + device.size();
    const auto [rest, error] = std::from_chars(device.data() + 5, end, ordinal);
    if (error == std::errc() && rest == end && ordinal >= 0 && ordinal < 128) {
      return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(ordinal));
    }
  }
  return absl::InvalidArgumentError(StrCat("device is not cpu or cuda:N: ", device));
}

c10::ScalarType ScalarTypeOf(ComputeType type, c10::Device device) {
  switch (type) {
    case ComputeType::kFloat32:
      return c10::kFloat;
    case ComputeType::kFloat16:
      return c10::kHalf;
    case ComputeType::kBFloat16:
      return c10::kBFloat16;
    case ComputeType::kDefault:
      break;
  }
  return device.is_cpu() ? c10::kFloat : c10::kBFloat16;
}

absl::StatusOr<ComputeType> ParseComputeType(std::string_view word, const std::string& device) {
  GRADQ_ASSIGN_OR_RETURN(const c10::Device parsed, ParseDevice(device));
  if (word.empty()) return ComputeType::kDefault;
  if (word == "float32" && parsed.is_cpu()) return ComputeType::kFloat32;
  if (word == "float16" && parsed.is_cuda()) return ComputeType::kFloat16;
  if (word == "bfloat16" && parsed.is_cuda()) return ComputeType::kBFloat16;
  return absl::InvalidArgumentError(
      StrCat("compute dtype is not float32 on cpu, float16 or bfloat16 on cuda:N: ", word, " on ",
             device));
}

absl::Status CheckCapability(const std::string& device, const kernels::CudaDevice& properties) {
  if (properties.compute_major >= kLeastMajor) return absl::OkStatus();
  return absl::FailedPreconditionError(
      StrCat("kernels need compute capability ", kLeastMajor, ".0: ", device, ", ", properties.name,
             ", ", properties.compute_major, ".", properties.compute_minor));
}

absl::Status CheckComputeDevice(const std::string& device) {
  GRADQ_ASSIGN_OR_RETURN(const c10::Device parsed, ParseDevice(device));
  if (parsed.is_cpu()) return absl::OkStatus();
  const absl::StatusOr<kernels::CudaDevice> properties = kernels::QueryCudaDevice(parsed.index());
  if (absl::IsInvalidArgument(properties.status())) {
    // The word is a device's, the machine has none of that number.
    return absl::FailedPreconditionError(properties.status().message());
  }
  GRADQ_RETURN_IF_ERROR(properties.status());
  GRADQ_RETURN_IF_ERROR(CheckCapability(device, *properties));
  if (!at::hasCUDA()) {
    return absl::FailedPreconditionError(StrCat("libtorch finds no CUDA: ", device));
  }
  return absl::OkStatus();
}

absl::Status CheckRoom(const LoadOptions& options, std::string_view path, c10::Device device,
                       int64_t needed) {
  int64_t free = 0;
  if (options.free_bytes) {
    GRADQ_ASSIGN_OR_RETURN(free, options.free_bytes());
  } else if (device.is_cuda()) {
    ReleaseCachedMemory(device);
    GRADQ_ASSIGN_OR_RETURN(const kernels::CudaDevice now, kernels::QueryCudaDevice(device.index()));
    free = now.free_bytes;
  } else {
    return absl::OkStatus();
  }
  if (needed <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(StrCat("model does not fit the device's free memory: ", path,
                                             " on ", options.device, ", needed ", needed,
                                             " bytes, free ", free, " bytes"));
}

}  // namespace gradq
