#include "lib/kernels/cuda_device.h"

#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gradq::kernels {
namespace {

TEST(CudaDevice, EveryCountedDeviceCanBeQueried) {
  const auto count = CudaDeviceCount();
  ASSERT_TRUE(count.ok()) << count.status();
  if (std::getenv("GRADQ_REQUIRE_CUDA") != nullptr) {
    ASSERT_GE(*count, 1);
  }
  for (int ordinal = 0; ordinal < *count; ++ordinal) {
    const auto device = QueryCudaDevice(ordinal);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_FALSE(device->name.empty());
    EXPECT_GE(device->compute_major, 8);
    EXPECT_GT(device->free_bytes, 0);
    EXPECT_LE(device->free_bytes, device->total_bytes);
  }
}

TEST(CudaDevice, NamesTheDeviceThatIsNotThere) {
  for (const int ordinal : {-1, 1000}) {
    const auto device = QueryCudaDevice(ordinal);
    ASSERT_FALSE(device.ok());
    EXPECT_TRUE(device.status().code() == absl::StatusCode::kInvalidArgument ||
                device.status().code() == absl::StatusCode::kFailedPrecondition)
        << device.status();
    EXPECT_THAT(std::string(device.status().message()),
                testing::HasSubstr("cuda:" + std::to_string(ordinal)));
  }
}

}  // namespace
}  // namespace gradq::kernels
