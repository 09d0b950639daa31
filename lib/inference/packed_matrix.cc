#include "lib/inference/packed_matrix.h"

#include <ATen/ops/empty_ops.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

constexpr int64_t kLeastPanelRows = 64;

}  // namespace

at::Tensor PanelScratch::Take(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  if (!memory_.defined() || memory_.numel() < rows * columns) {
    memory_ = at::Tensor();  // first, so that old and new never lie side by side
    memory_ = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow({rows * columns}),
                                                  c10::typeMetaToScalarType(options.dtype()), {},
                                                  options.device(), {}, {});
  }
  return memory_.slice(0, 0, rows * columns).view({rows, columns});
}

int64_t PanelRows(int64_t weights, int64_t in_features, int64_t out_features) {
  return std::min(out_features, std::max(kLeastPanelRows, weights / in_features));
}

at::Tensor UploadBytes(const void* data, size_t size, const std::vector<int64_t>& shape,
                       at::ScalarType type, at::Device device) {
  at::Tensor tensor = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), type, {},
                                                          at::kCPU, {}, {});
  GRADQ_CHECK(tensor.nbytes() == size);
  // An array that a matrix lacks is null.
  if (size > 0) std::memcpy(tensor.mutable_data_ptr(), data, size);
  return tensor.to(device);
}

}  // namespace gradq
