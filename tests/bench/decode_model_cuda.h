#pragma once

// Models with random weights for decode_cuda: a geometry, what all variants share, and linears
// packed or dense. Compute thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/catalog/geometry.h"
#include "lib/inference/packed_linear.h"
#include "lib/transformer/block.h"

namespace gradq {

// config.json of Llama-2-7B with `blocks` blocks (32 in the original).
std::string Llama7bConfig(int blocks);

// Everything but the linears; norms are 1, the rest is normal with standard deviation 0.02.
struct ModelEnds {
  ModelGeometry geometry;
  at::Tensor embedding;
  HeadWeights head;
  std::vector<BlockWeights> blocks;
};
ModelEnds MakeModelEnds(const ModelGeometry& geometry, at::ScalarType type, at::Device device);

// Dense linears as fast as they can be: q, k, v and gate, up are one matrix each, as packed ones
// are.
class FusedDenseOp : public LinearOp {
 public:
  FusedDenseOp(const ModelGeometry& geometry, at::ScalarType type, at::Device device);
  at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) override;
  std::vector<at::Tensor> ApplyTogether(int block, std::span<const LinearKind> kinds,
                                        const at::Tensor& x) override;
  int64_t bytes() const;

 private:
  struct Block {
    at::Tensor qkv, o, gate_up, down;  // [out, in]
  };
  // The matrix that holds `kind`, and the rows it has there.
  const at::Tensor& MatrixOf(int block, LinearKind kind) const;
  std::pair<int64_t, int64_t> RowsOf(LinearKind kind) const;

  const ModelGeometry geometry_;
  std::vector<Block> blocks_;
};

// LUT linears with random codes, the same in every block; `outlier_percent` of the weights apart.
// `ends` must outlive them, as must `pool` (may be null).
std::unique_ptr<PackedLinearOp> MakePackedLinears(const ModelEnds& ends, int bits,
                                                  double outlier_percent, ThreadPool* pool);

}  // namespace gradq
