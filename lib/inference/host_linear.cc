// Packed matrices on the CPU in fp32: lib/kernels' lut_matmul and affine_matmul.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <utility>

#include "lib/inference/packed_matrix.h"
#include "lib/kernels/affine_matmul.h"
#include "lib/kernels/lut_matmul.h"

namespace gradq {
namespace {

void MultiplyCodes(const kernels::LutMatrix& matrix, const float* x, int64_t batch, float* y,
                   ThreadPool* pool) {
  kernels::LutMatmul(matrix, x, batch, y, pool);
}
void MultiplyCodes(const kernels::AffineMatrix& matrix, const float* x, int64_t batch, float* y,
                   ThreadPool* pool) {
  kernels::AffineMatmul(matrix, x, batch, y, pool);
}
void DecodeRows(const kernels::LutMatrix& matrix, int64_t begin, int64_t end, float* out,
                ThreadPool* pool) {
  kernels::DequantizeLutRows(matrix, begin, end, out, pool);
}
void DecodeRows(const kernels::AffineMatrix& matrix, int64_t begin, int64_t end, float* out,
                ThreadPool* pool) {
  kernels::DequantizeAffineRows(matrix, begin, end, out, pool);
}

template <typename Matrix>
class HostLinear : public PackedMatrix {
 public:
  HostLinear(Matrix matrix, ThreadPool* pool, PanelScratch* scratch)
      : matrix_(std::move(matrix)), pool_(pool), scratch_(scratch) {}

  at::Tensor Multiply(const at::Tensor& x, const at::Tensor& bias) override {
    const int64_t tokens = x.size(0), out = matrix_.out_features(), in = matrix_.in_features();
    at::Tensor y = x.new_empty({tokens, out});
    if (tokens <= kernels::kLutMatmulBatch) {
      MultiplyCodes(matrix_, x.const_data_ptr<float>(), tokens, y.mutable_data_ptr<float>(), pool_);
    } else {
      const int64_t step = PanelRows(kHostPanelWeights, in, out);
      for (int64_t begin = 0; begin < out; begin += step) {
        const int64_t end = std::min(begin + step, out);
        const at::Tensor panel = scratch_->Take(end - begin, in, x.options());
        DecodeRows(matrix_, begin, end, panel.mutable_data_ptr<float>(), pool_);
        at::Tensor columns = y.slice(1, begin, end);
        at::_ops::mm_out::call(x, panel.t(), columns);
      }
    }
    if (bias.defined()) y.add_(bias);
    return y;
  }

  int64_t bytes() const override { return matrix_.bytes(); }

 private:
  Matrix matrix_;
  ThreadPool* pool_;
  PanelScratch* scratch_;
};

}  // namespace

std::unique_ptr<PackedMatrix> MakeHostMatrix(const QuantizedLinear& linear, ThreadPool* pool,
                                             PanelScratch* scratch) {
  kernels::SparseRows sparse(linear.outliers.row_ptr, linear.outliers.col, linear.outliers.value,
                             linear.in_features);
  if (linear.encoding == Encoding::kLut) {
    kernels::LutMatrix matrix(linear.packed, linear.lut, linear.out_features, linear.in_features,
                              linear.bits, pool);
    matrix.SetSparse(std::move(sparse));
    return std::make_unique<HostLinear<kernels::LutMatrix>>(std::move(matrix), pool, scratch);
  }
  kernels::AffineMatrix matrix(linear.packed, linear.scale, linear.zero_point, linear.out_features,
                               linear.in_features, linear.bits, linear.group_size);
  matrix.SetSparse(std::move(sparse));
  return std::make_unique<HostLinear<kernels::AffineMatrix>>(std::move(matrix), pool, scratch);
}

}  // namespace gradq
