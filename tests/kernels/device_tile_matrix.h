#pragma once

// A TileMatrix on the current CUDA device, for tests and benches. One thread at a time.

#include <span>

#include "absl/status/statusor.h"
#include "lib/base/status_macros.h"
#include "lib/kernels/tile_matrix.h"
#include "tests/kernels/device_memory.h"

namespace gradq::kernels {

class DeviceTileMatrix {
 public:
  static absl::StatusOr<DeviceTileMatrix> Upload(const TileMatrix& matrix) {
    DeviceTileMatrix on_device;
    on_device.view_ = matrix.view();
    GRADQ_ASSIGN_OR_RETURN(on_device.codes_, DeviceBuffer<Words4>::Upload(matrix.codes()));
    on_device.view_.codes = on_device.codes_.data();
    GRADQ_RETURN_IF_ERROR(Move(matrix.tables(), &on_device.tables_, &on_device.view_.tables));
    GRADQ_RETURN_IF_ERROR(Move(matrix.scales(), &on_device.scales_, &on_device.view_.scales));
    GRADQ_RETURN_IF_ERROR(
        Move(matrix.outlier_begin(), &on_device.outlier_begin_, &on_device.view_.outlier_begin));
    GRADQ_RETURN_IF_ERROR(Move(matrix.outliers(), &on_device.outliers_, &on_device.view_.outliers));
    return on_device;
  }

  // Of memory of the device, which this object holds.
  const TileView& view() const { return view_; }

 private:
  static absl::Status Move(std::span<const uint32_t> from, DeviceBuffer<uint32_t>* to,
                           const uint32_t** pointer) {
    if (from.empty()) return absl::OkStatus();
    GRADQ_ASSIGN_OR_RETURN(*to, DeviceBuffer<uint32_t>::Upload(from));
    *pointer = to->data();
    return absl::OkStatus();
  }

  TileView view_;
  DeviceBuffer<Words4> codes_;
  DeviceBuffer<uint32_t> tables_;
  DeviceBuffer<uint32_t> scales_;
  DeviceBuffer<uint32_t> outlier_begin_;
  DeviceBuffer<uint32_t> outliers_;
};

}  // namespace gradq::kernels
