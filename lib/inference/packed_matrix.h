#pragma once

// One packed matrix in the form that its device multiplies best: a linear of an artifact, or
// several that read the same input, rows one below the other. Made and used by PackedLinearOp only.
// Compute thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/catalog/inference_memory.h"
#include "lib/format/quantized_linear.h"

namespace gradq {

class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  // x [tokens, in], contiguous, in the dtype and on the device of the model -> [tokens, out], plus
  // `bias` [out] of the same dtype where it is defined.
  virtual at::Tensor Multiply(const at::Tensor& x, const at::Tensor& bias) = 0;
  // Memory held by codes, tables, scales, zero points and outliers.
  virtual int64_t bytes() const = 0;
};

// Where rows are decoded for a product with many tokens: one for all matrices of a model.
class PanelScratch {
 public:
  // `weights`: of a panel of the tile form.
  explicit PanelScratch(int64_t weights = kTilePanelWeights) : weights_(weights) {}
  int64_t weights() const { return weights_; }
  // [rows, columns] of undefined values, valid until the next call.
  at::Tensor Take(int64_t rows, int64_t columns, const at::TensorOptions& options);

 private:
  const int64_t weights_;
  at::Tensor memory_;
};

// Rows that are decoded at a time: about `weights` weights, not less than a few, at most all.
int64_t PanelRows(int64_t weights, int64_t in_features, int64_t out_features);

// `linear` has passed Validate in all of these; `pool` may be null and, like `scratch`, must
// outlive the matrix.

// On the CPU in fp32: few tokens by the codes themselves, many by panels.
std::unique_ptr<PackedMatrix> MakeHostMatrix(const QuantizedLinear& linear, ThreadPool* pool,
                                             PanelScratch* scratch);
// In fp16 and bf16, on CUDA by our kernels and on the CPU by their oracle; ThereAreTileKernels.
std::unique_ptr<PackedMatrix> MakeTileMatrix(const QuantizedLinear& linear, at::Device device,
                                             ThreadPool* pool, PanelScratch* scratch);
bool ThereAreTileKernels(Encoding encoding, int bits, int64_t group_size);
// Any width and group on any device and in any dtype, decoded by ATen: slow.
std::unique_ptr<PackedMatrix> MakeAtenMatrix(const QuantizedLinear& linear, at::Device device);

// A tensor on `device` with the bytes of `values`, `shape` of `type`.
at::Tensor UploadBytes(const void* data, size_t size, const std::vector<int64_t>& shape,
                       at::ScalarType type, at::Device device);
template <typename Values>
at::Tensor Upload(const Values& values, const std::vector<int64_t>& shape, at::ScalarType type,
                  at::Device device) {
  const auto bytes = std::as_bytes(std::span(values));
  return UploadBytes(bytes.data(), bytes.size(), shape, type, device);
}

}  // namespace gradq
