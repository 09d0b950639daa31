#include "tests/kernels/device_memory.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gradq::kernels {
namespace {

TEST(DeviceMemory, ABuildWithoutDeviceSaysSo) {
  const auto why = WhyNoDevice();
  if (!why) GTEST_SKIP() << "there is a device";
  EXPECT_FALSE(why->empty());
  EXPECT_FALSE(DeviceBuffer<float>::Allocate(1).ok());
  EXPECT_FALSE(SynchronizeDevice().ok());
  EXPECT_FALSE(FreeDeviceBytes().ok());
}

TEST(DeviceMemory, GoesThereAndBack) {
  if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  const std::vector<float> values = {1, 2, 3};
  const auto buffer = DeviceBuffer<float>::Upload(values);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 256, 0u);
  const auto back = buffer->Download();
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, values);
}

TEST(DeviceMemory, StartsPoisoned) {
  if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  const auto buffer = DeviceBuffer<float>::Allocate(5);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  const auto values = buffer->Download();
  ASSERT_TRUE(values.ok()) << values.status();
  for (const float value : *values) EXPECT_TRUE(std::isnan(value));
}

TEST(DeviceMemory, AWriteBeyondIsSeen) {
  if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  const auto buffer = DeviceBuffer<char>::Allocate(64);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  const std::vector<char> zeros(65);
  for (const int before : {0, 1}) {
    ASSERT_TRUE(CopyToDevice(buffer->data() - before, zeros.data(), 65 - before).ok());
    const auto read = buffer->Download();
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInternal) << read.status();
    EXPECT_THAT(std::string(read.status().message()),
                testing::HasSubstr(before == 0 ? "byte 64 of 64" : "byte -1 of 64"));
  }
}

TEST(DeviceMemory, TooMuchIsResourceExhausted) {
  if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  const auto free = FreeDeviceBytes();
  ASSERT_TRUE(free.ok()) << free.status();
  EXPECT_GT(*free, 0);
  const auto buffer = DeviceBytes::Allocate(int64_t{1} << 50);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted) << buffer.status();
  EXPECT_TRUE(SynchronizeDevice().ok());
}

}  // namespace
}  // namespace gradq::kernels
