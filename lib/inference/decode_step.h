#pragma once

// One token of one sequence through all blocks and the head, by lib/kernels/decode_ops and a
// LinearOp: the same computation as RunBlock, in the few launches that a CUDA graph replays for
// every token. Token and position are read from memory of the device. Also runs on the CPU, where
// tests compare it with RunBlock. Compute thread; exceptions as TorchStatus takes them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lib/catalog/geometry.h"
#include "lib/inference/cached_attention.h"
#include "lib/transformer/block.h"

namespace gradq {

class DecodeStep {
 public:
  // A model; everything must outlive the step.
  struct Weights {
    const ModelGeometry& geometry;
    const at::Tensor& embedding;
    const HeadWeights& head;
    const std::vector<BlockWeights>& blocks;
    LinearOp& linears;
  };

  // Whether decode_ops have kernels for the geometry.
  static bool Serves(const ModelGeometry& geometry);
  // Computes in the embedding's dtype on its device. `multiprocessors` of that device; it decides
  // into how many parts attention is cut (1 on the CPU).
  DecodeStep(const Weights& weights, int multiprocessors);

  // What the next Run reads: the token and its position in the sequence.
  void SetInput(int32_t token, int64_t position);
  // Appends the token's keys and values to `attention`, whose capacity and whose rotary table reach
  // beyond the position, and overwrites logits(). Reads nothing on the host: may be recorded. Does
  // not advance `attention`.
  void Run(const CachedAttention& attention, const RotaryTable& rotary);
  // fp32 [vocab] on the device.
  const at::Tensor& logits() const { return logits_; }
  at::Device device() const { return logits_.device(); }

 private:
  struct Buffers;

  void RunAttention(const Buffers& buffers, const CachedAttention& attention,
                    const RotaryTable& rotary, int block);

  const Weights weights_;
  const int multiprocessors_;
  at::Tensor input_;   // int32 {token, position} on the device
  at::Tensor logits_;  // fp32 [vocab]
};

}  // namespace gradq
