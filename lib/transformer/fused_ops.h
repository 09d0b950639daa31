#pragma once

// The memory-bound ops of a block as single autograd nodes. On the CPU in fp32, and where no
// gradient of a norm's weight is asked for, they run on lib/kernels/block_ops.h; elsewhere as
// compositions of ATen ops. Called from the one compute thread.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace gradq {

// x · weight / sqrt(mean x² + eps) over the last dimension, the mean in fp32. Result in the dtype
// of weight. Differentiable in x, and in weight where it requires a gradient.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// Rotary embedding. x [sequences, tokens, heads, head_dim]; cos, sin fp32 [tokens, head_dim].
// Differentiable in x.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// silu(gate) · up. Differentiable in both.
at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up);

// True where CausalAttentionOnKernels serves: fp32 on the CPU, and no PlainOps.
bool AttentionHasKernel(const at::Tensor& q);

// Causal attention within the last `window` tokens (0: all). q [sequences, heads, tokens,
// head_dim], k and v [sequences, kv_heads, tokens, head_dim]; result as q. Differentiable in all
// three.
at::Tensor CausalAttentionOnKernels(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    int64_t window);

// Cross-entropy of logits [sequences, tokens, vocab] against the next tokens [sequences, tokens],
// with its gradient.
struct CrossEntropyResult {
  at::Tensor losses;   // fp32 [sequences, tokens - 1]
  at::Tensor dlogits;  // of Σ over sequences of the mean over tokens; like logits, the last token's
                       // row zero
};
// `logits` may be overwritten. No graph.
CrossEntropyResult CrossEntropy(at::Tensor logits, const at::Tensor& tokens);

// While one lives, the ops above are compositions of ATen ops: oracle of the tests and yardstick of
// the benchmarks. One at a time.
class PlainOps {
 public:
  PlainOps();
  ~PlainOps();
  PlainOps(const PlainOps&) = delete;
  PlainOps& operator=(const PlainOps&) = delete;
};

}  // namespace gradq
