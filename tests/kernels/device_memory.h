#pragma once

// Memory of the current CUDA device for tests and benches, without a CUDA header: a build without
// CUDA has the same functions, which say so (FAILED_PRECONDITION). One thread at a time.
//
//   if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
//   auto x = DeviceBuffer<float>::Upload(values);         // StatusOr
//   auto y = DeviceBuffer<float>::Allocate(rows);
//   ... launch with x->data(), y->data() ...
//   const auto result = y->Download();

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/status_macros.h"

namespace gradq::kernels {

// Why the device cases of a test can't run here, nothing when they can. Where GRADQ_REQUIRE_CUDA
// is set (and not 0) and there is no device, the running test has also failed, not just skipped.
std::optional<std::string> WhyNoDevice();
// For the SetUp of device cases: skips the test where WhyNoDevice, or fails it fatally, which is
// what keeps the body of a failed test from running.
void SetUpDevice();

// Free memory of the current device over all processes.
absl::StatusOr<int64_t> FreeDeviceBytes();
// Waits for everything on the current device; INTERNAL with the error of a kernel that failed.
absl::Status SynchronizeDevice();

// `bytes` from host memory to anywhere on the device; waits for the device's work first.
absl::Status CopyToDevice(void* to, const void* from, int64_t bytes);

// Bytes with a guard zone on both sides; 256-byte aligned, filled with 0xFF (NaN in every float
// type) at first.
class DeviceBytes {
 public:
  // RESOURCE_EXHAUSTED when the device has not as much.
  static absl::StatusOr<DeviceBytes> Allocate(int64_t bytes);
  DeviceBytes() = default;
  DeviceBytes(DeviceBytes&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBytes();

  char* data() const { return base_ + kGuardBytes; }
  int64_t size() const { return bytes_; }
  // All of it, after the device's work; INTERNAL when a guard zone was written.
  absl::Status Read(void* to) const;

 private:
  static constexpr int64_t kGuardBytes = 4096;

  char* base_ = nullptr;
  int64_t bytes_ = 0;
};

// The same as elements of a type.
template <class T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static absl::StatusOr<DeviceBuffer> Allocate(int64_t count) {
    DeviceBuffer buffer;
    GRADQ_ASSIGN_OR_RETURN(buffer.bytes_,
                           DeviceBytes::Allocate(count * static_cast<int64_t>(sizeof(T))));
    return buffer;
  }
  static absl::StatusOr<DeviceBuffer> Upload(std::span<const T> values) {
    GRADQ_ASSIGN_OR_RETURN(DeviceBuffer buffer, Allocate(static_cast<int64_t>(values.size())));
    GRADQ_RETURN_IF_ERROR(CopyToDevice(buffer.data(), values.data(), buffer.bytes_.size()));
    return buffer;
  }
  absl::StatusOr<std::vector<T>> Download() const {
    std::vector<T> values(size());
    GRADQ_RETURN_IF_ERROR(bytes_.Read(values.data()));
    return values;
  }

  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
  int64_t size() const { return bytes_.size() / static_cast<int64_t>(sizeof(T)); }

 private:
  DeviceBytes bytes_;
};

}  // namespace gradq::kernels
