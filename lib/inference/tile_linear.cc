// Packed matrices in the tile order of the CUDA kernels (lib/kernels/tile_matrix.h).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/inference/compute_queue.h"
#include "lib/inference/packed_matrix.h"
#include "lib/inference/torch_status.h"
#include "lib/kernels/tile_matmul.h"
#include "lib/kernels/tile_matrix.h"
#include "lib/kernels/tile_path.h"

namespace gradq {
namespace {

kernels::TileEncoding TileEncodingOf(Encoding encoding) {
  return encoding == Encoding::kLut ? kernels::TileEncoding::kLut : kernels::TileEncoding::kAffine;
}

kernels::FloatType FloatTypeOf(const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  GRADQ_CHECK(type == at::kHalf || type == at::kBFloat16);
  return type == at::kHalf ? kernels::FloatType::kFloat16 : kernels::FloatType::kBFloat16;
}

// Rows of a tile are decoded together.
int64_t TilePanelRows(int64_t weights, const kernels::TileView& view) {
  const int64_t rows = PanelRows(weights, view.in_features, view.out_features);
  return (rows + kernels::kMmaRows - 1) / kernels::kMmaRows * kernels::kMmaRows;
}

class TileLinear : public PackedMatrix {
 public:
  TileLinear(const kernels::TileMatrix& matrix, at::Device device, PanelScratch* scratch)
      : view_(matrix.view()), scratch_(scratch) {
    const auto upload = [&](const auto& values) {
      const auto bytes = static_cast<int64_t>(values.size_bytes());
      memory_.push_back(Upload(values, {bytes}, at::kByte, device));
      return values.empty() ? nullptr : memory_.back().const_data_ptr();
    };
    view_.codes = static_cast<const kernels::Words4*>(upload(matrix.codes()));
    view_.tables = static_cast<const uint32_t*>(upload(matrix.tables()));
    view_.scales = static_cast<const uint32_t*>(upload(matrix.scales()));
    view_.outlier_begin = static_cast<const uint32_t*>(upload(matrix.outlier_begin()));
    view_.outliers = static_cast<const uint32_t*>(upload(matrix.outliers()));
  }

  at::Tensor Multiply(const at::Tensor& x, const at::Tensor& bias) override {
    at::Tensor y = x.new_empty({x.size(0), view_.out_features});
    const kernels::Queue queue = ComputeQueue(x.device());
    kernels::TileMatmulArgs args;
    args.type = FloatTypeOf(x);
    args.x = x.const_data_ptr();
    args.batch = x.size(0);
    args.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
    args.y = y.mutable_data_ptr();
    switch (kernels::ChooseTilePath(view_, args.batch)) {
      case kernels::TilePath::kMatvec:
        ThrowIfError(kernels::TileMatvec(queue, view_, args));
        break;
      case kernels::TilePath::kMatmul:
        ThrowIfError(kernels::TileMatmul(queue, view_, args));
        break;
      case kernels::TilePath::kDequantize:
        MultiplyPanels(queue, x, y);
        if (bias.defined()) y.add_(bias);
        break;
    }
    return y;
  }

  int64_t bytes() const override {
    int64_t total = 0;
    for (const at::Tensor& tensor : memory_) total += static_cast<int64_t>(tensor.nbytes());
    return total;
  }

 private:
  void MultiplyPanels(const kernels::Queue& queue, const at::Tensor& x, const at::Tensor& y) {
    const int64_t step = TilePanelRows(scratch_->weights(), view_);
    for (int64_t begin = 0; begin < view_.out_features; begin += step) {
      const int64_t end = std::min(begin + step, view_.out_features);
      const at::Tensor panel = scratch_->Take(end - begin, view_.in_features, x.options());
      ThrowIfError(kernels::TileDequantize(queue, view_, begin, end, FloatTypeOf(x),
                                           panel.mutable_data_ptr()));
      at::Tensor columns = y.slice(1, begin, end);
      at::_ops::mm_out::call(x, panel.t(), columns);
    }
  }

  kernels::TileView view_;  // with pointers into memory_
  std::vector<at::Tensor> memory_;
  PanelScratch* scratch_;
};

kernels::TileMatrix Repack(const QuantizedLinear& linear, ThreadPool* pool) {
  const kernels::SparseRows sparse(linear.outliers.row_ptr, linear.outliers.col,
                                   linear.outliers.value, linear.in_features);
  if (linear.encoding == Encoding::kLut) {
    return kernels::TileMatrix::FromLut(linear.packed, linear.lut, sparse, linear.out_features,
                                        linear.in_features, linear.bits, pool);
  }
  return kernels::TileMatrix::FromAffine(linear.packed, linear.scale, linear.zero_point, sparse,
                                         linear.out_features, linear.in_features, linear.bits,
                                         linear.group_size, pool);
}

}  // namespace

bool ThereAreTileKernels(Encoding encoding, int bits, int64_t group_size) {
  return kernels::HasTileKernels(TileEncodingOf(encoding), bits) && group_size % 16 == 0;
}

std::unique_ptr<PackedMatrix> MakeTileMatrix(const QuantizedLinear& linear, at::Device device,
                                             ThreadPool* pool, PanelScratch* scratch) {
  GRADQ_CHECK(ThereAreTileKernels(linear.encoding, linear.bits, linear.group_size));
  return std::make_unique<TileLinear>(Repack(linear, pool), device, scratch);
}

}  // namespace gradq
