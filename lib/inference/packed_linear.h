#pragma once

// The linears of an artifact, outliers included, as the transformer's LinearOp; there is never a
// dense copy of a matrix. How they are multiplied depends on the device and the width
// (packed_matrix.h). In tile form q, k, v and gate, up of a block are one matrix each where their
// encodings agree. Compute thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/format/quantized_linear.h"
#include "lib/inference/packed_matrix.h"
#include "lib/transformer/block.h"

namespace gradq {

enum class PackedForm { kHost, kTile, kAten };
// Which form a model on `device` that computes in `type` takes; linears that have no tile kernels
// take kAten instead of kTile.
PackedForm FormOf(at::Device device, at::ScalarType type);

// Of a panel of decoded rows.
int64_t PanelWeightsOf(PackedForm form);

class PackedLinearOp : public LinearOp {
 public:
  // `weights` holds the biases and must outlive this, as must `pool` (may be null).
  PackedLinearOp(const std::vector<BlockWeights>& weights, PackedForm form, at::Device device,
                 ThreadPool* pool);

  // Takes over linears `kinds` of `block`, which read the same input; each has passed Validate.
  void Set(int block, std::span<const LinearKind> kinds, std::span<const QuantizedLinear> linears);
  void Set(int block, LinearKind kind, const QuantizedLinear& linear) {
    Set(block, {&kind, 1}, {&linear, 1});
  }
  at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) override;
  std::vector<at::Tensor> ApplyTogether(int block, std::span<const LinearKind> kinds,
                                        const at::Tensor& x) override;
  // All by tile kernels: nothing in a product of one token waits for the host.
  bool all_tiles() const { return all_tiles_; }
  // Memory held by codes, tables, scales, zero points, outliers and copies of biases.
  int64_t bytes() const;

 private:
  struct Group {
    std::unique_ptr<PackedMatrix> matrix;
    at::Tensor bias;        // [out] of all, may be undefined
    bool own_bias = false;  // a copy, not one of weights_
  };
  // Where the rows of one linear lie.
  struct Place {
    int group = -1;
    int64_t begin = 0;
    int64_t rows = 0;
  };

  void Add(int block, std::span<const LinearKind> kinds, const QuantizedLinear& rows,
           std::span<const QuantizedLinear> linears);
  at::Tensor FusedBias(int block, std::span<const LinearKind> kinds,
                       std::span<const QuantizedLinear> linears) const;
  const Place& PlaceOf(int block, LinearKind kind) const;
  // [..., out of the group].
  at::Tensor MultiplyGroup(int group, const at::Tensor& x);

  const std::vector<BlockWeights>& weights_;
  const PackedForm form_;
  const at::Device device_;
  ThreadPool* const pool_;
  PanelScratch scratch_;
  bool all_tiles_ = true;
  std::vector<Group> groups_;
  std::vector<Place> places_;  // block · kLinearsPerBlock + kind
};

}  // namespace gradq
