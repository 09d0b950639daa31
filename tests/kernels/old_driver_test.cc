// CUDA's runtime over a driver that is too old (old_driver.cc): exists in builds with CUDA, needs
// no device.

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/kernels/cuda_device.h"

namespace gradq::kernels {
namespace {

TEST(OldDriver, IsNamedWithBothVersions) {
  const absl::StatusOr<int> count = CudaDeviceCount();
  ASSERT_EQ(count.status().code(), absl::StatusCode::kUnavailable) << count.status();
  EXPECT_THAT(std::string(count.status().message()),
              testing::HasSubstr("CUDA driver older than the runtime: 12020, 13"));
  EXPECT_EQ(QueryCudaDevice(0).status(), count.status());
}

}  // namespace
}  // namespace gradq::kernels
