#include "tests/kernels/device_memory.h"

#include <cstdlib>
#include <string_view>

#include "gtest/gtest.h"
#include "lib/kernels/cuda_device.h"

namespace gradq::kernels {

std::optional<std::string> WhyNoDevice() {
  const absl::StatusOr<int> count = CudaDeviceCount();
  if (count.ok() && *count > 0) return std::nullopt;
  const std::string why = count.ok() ? "no CUDA device" : std::string(count.status().message());
  const char* required = std::getenv("GRADQ_REQUIRE_CUDA");
  if (required != nullptr && std::string_view(required) != "" &&
      std::string_view(required) != "0") {
    ADD_FAILURE() << "GRADQ_REQUIRE_CUDA is set: " << why;
  }
  return why;
}

void SetUpDevice() {
  const auto why = WhyNoDevice();
  if (!why) return;
  if (testing::Test::HasFailure()) FAIL() << *why;
  GTEST_SKIP() << *why;
}

}  // namespace gradq::kernels
