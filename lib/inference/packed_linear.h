#pragma once

// The linears of an artifact, outliers included, as the transformer's LinearOp: a few tokens are
// multiplied with the packed codes themselves, many with panels of rows that are decoded into one
// small scratch; there is never a dense copy of a matrix. On CUDA the codes lie on the device and
// panels are decoded by ATen. Compute thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/format/quantized_linear.h"
#include "lib/kernels/affine_matmul.h"
#include "lib/kernels/lut_matmul.h"
#include "lib/transformer/block.h"

namespace gradq {

class PackedLinearOp : public LinearOp {
 public:
  // `weights` holds the biases and must outlive this, as must `pool` (may be null). `kernels`
  // false: panels are decoded by ATen, as on every device but the CPU.
  PackedLinearOp(const std::vector<BlockWeights>& weights, at::Device device, ThreadPool* pool,
                 bool kernels = true);
  ~PackedLinearOp() override;

  // Takes over linear `kind` of `block`; Validate(linear) has passed.
  void Set(int block, LinearKind kind, const QuantizedLinear& linear);
  at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) override;
  // Memory held by codes, tables, scales, zero points and outliers.
  int64_t bytes() const;

 private:
  // Codes and tables as tensors of a device without kernels of ours.
  struct DeviceLinear;
  using Packed = std::variant<std::monostate, kernels::LutMatrix, kernels::AffineMatrix,
                              std::unique_ptr<DeviceLinear>>;

  at::Tensor ApplyOnHost(const Packed& packed, const at::Tensor& x);
  at::Tensor Panel(int64_t rows, int64_t columns);

  const std::vector<BlockWeights>& weights_;
  at::Device device_;
  bool kernels_;
  ThreadPool* pool_;
  std::vector<Packed> linears_;
  at::Tensor scratch_;  // decoded rows, reused
};

}  // namespace gradq
