#pragma once

// A contiguous run of blocks on one device, with the embedding before block 0 and the head after
// the last: what one RunStage task of lib/pipeline computes on each chunk. Every block is its own
// autograd graph, cut at the residual stream, so results have the same bits for any cut into stages
// and with or without recompute. Called from the one compute thread; libtorch exceptions pass
// through.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/geometry.h"
#include "lib/format/tensor_source.h"
#include "lib/transformer/block.h"
#include "lib/transformer/observed_linear.h"

namespace gradq {

class Stage {
 public:
  struct Config {
    int first_block = 0;
    int end_block = 0;  // one past the last
    at::Device device = at::kCPU;
    // Of weights and products: fp32, or bf16 on CUDA. The residual stream and dz are fp32
    // everywhere.
    at::ScalarType compute_dtype = at::kFloat;
    // Keep only block boundaries and run each block's forward again in the backward pass.
    bool recompute = false;
  };

  struct Gradients {
    // dL/dx of the stage's input, fp32 [sequences, tokens, hidden] on the device; undefined for the
    // first stage.
    at::Tensor dx;
    // Of the last stage only.
    double loss_sum = 0;
  };

  // Reads the weights. Errors of TensorSource; INVALID_ARGUMENT when a tensor has another shape
  // than the geometry's.
  static absl::StatusOr<std::unique_ptr<Stage>> Load(const TensorSource& source,
                                                     const ModelGeometry& geometry,
                                                     const Config& config);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  bool is_first() const { return config_.first_block == 0; }
  bool is_last() const { return config_.end_block == geometry_.blocks; }
  // All linears of the stage.
  LinearSet linears() const;

  // `input`: token ids int32 or int64 [sequences, tokens] for the first stage, else fp32
  // [sequences, tokens, hidden]; any device. Result: the residual stream after the last block, fp32
  // on the device. No graph is kept. Linears of `wanted` are shown to `observer` in order of
  // computation, without dz.
  at::Tensor Forward(const at::Tensor& input, const LinearSet& wanted = {},
                     const Observer& observer = {});

  // Last stage: Σ over all predicted tokens of -ln p(token | past) after residual stream `x`, in
  // fp64, token after token.
  double LossSum(const at::Tensor& x, const at::Tensor& tokens);

  // Forward and backward of one chunk. L = Σ over the sequences of the chunk of the mean
  // cross-entropy of each. `output_gradient`: dL/dx behind the last block, fp32; ignored by the
  // last stage, which computes the loss against `tokens` [sequences, tokens] (ignored by the
  // others). Linears of `wanted` are shown to `observer`: blocks from the last to the first, in a
  // block down, up, gate, o, v, k, q. The first stage goes back only as far as something is wanted.
  // No gradient of a weight is formed.
  Gradients ForwardBackward(const at::Tensor& input, const at::Tensor& output_gradient,
                            const at::Tensor& tokens, const LinearSet& wanted,
                            const Observer& observer);

 private:
  Stage(const ModelGeometry& geometry, const Config& config);

  // The residual stream before the first block.
  at::Tensor Enter(const at::Tensor& input) const;
  const RotaryTable& Rotary(int64_t tokens);
  at::Tensor Run(int block, const at::Tensor& x, LinearOp& linears);
  // dL/dx behind the last block and the loss.
  Gradients Head(const at::Tensor& x, const at::Tensor& tokens) const;

  ModelGeometry geometry_;
  Config config_;
  at::Tensor embedding_;  // first stage
  HeadWeights head_;      // last stage
  std::vector<BlockWeights> weights_;
  RotaryTable rotary_;
  CausalAttention attention_;
};

}  // namespace gradq
