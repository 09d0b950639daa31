#pragma once

// Float storage on cache-line boundaries, as the row-tile kernels want it.

#include <cstdint>
#include <memory>
#include <new>

namespace gradq::kernels {

inline constexpr std::align_val_t kFloatAlignment{64};

// Zero-filled, movable, not copyable.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(int64_t count)
      : data_(static_cast<float*>(
            ::operator new(sizeof(float) * static_cast<size_t>(count), kFloatAlignment))) {
    for (int64_t i = 0; i < count; ++i) data_.get()[i] = 0.0f;
  }

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }

 private:
  struct Delete {
    void operator()(float* data) const { ::operator delete(data, kFloatAlignment); }
  };
  std::unique_ptr<float, Delete> data_;
};

}  // namespace gradq::kernels
