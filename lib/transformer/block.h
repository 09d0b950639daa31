#pragma once

// Forward of a decoder block in ATen autograd, for every family of lib/catalog/geometry.h. What
// varies between calibration and inference is injected: LinearOp (dense, observed, packed) and
// Attention (causal windows, KV cache). Called from the one compute thread. libtorch exceptions
// pass through; the public edge of lib/pipeline and lib/inference turns them into Status.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/geometry.h"
#include "lib/format/tensor_source.h"

namespace gradq {

// Tensors of one block on one device; weight[i] is [out, in], undefined when the LinearOp does not
// need it (packed); bias[i] may be undefined.
struct BlockWeights {
  at::Tensor input_norm;      // [hidden]
  at::Tensor post_norm;       // [hidden]
  at::Tensor q_norm, k_norm;  // [head_dim], qwen3 only
  std::array<at::Tensor, kLinearsPerBlock> weight;
  std::array<at::Tensor, kLinearsPerBlock> bias;
};

// Applies linear `kind` of `block`: x [sequences, tokens, in] -> [sequences, tokens, out], bias
// included.
class LinearOp {
 public:
  virtual ~LinearOp() = default;
  virtual at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) = 0;
  // Linears that read the same x, results in the order of `kinds`. By itself one Apply after the
  // other; an implementation may multiply them at once, the results are then views of one tensor.
  virtual std::vector<at::Tensor> ApplyTogether(int block, std::span<const LinearKind> kinds,
                                                const at::Tensor& x);
};

// How queries meet keys and values. q [sequences, heads, tokens, head_dim], k and v [sequences,
// kv_heads, tokens, head_dim], rotary applied. Result [sequences, heads, tokens, head_dim].
class Attention {
 public:
  virtual ~Attention() = default;
  // Position of the first of the tokens now running (0 for whole windows).
  virtual int64_t position() const = 0;
  virtual at::Tensor Attend(int block, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) = 0;
};

// Whole windows from position 0 with the geometry's sliding window, differentiable.
class CausalAttention : public Attention {
 public:
  explicit CausalAttention(const ModelGeometry& geometry) : geometry_(geometry) {}
  int64_t position() const override { return 0; }
  at::Tensor Attend(int block, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v) override;

 private:
  const ModelGeometry& geometry_;
  at::Tensor mask_;  // of the sliding window, for the last number of tokens
};

// Dense linears of a set of blocks.
class DenseLinearOp : public LinearOp {
 public:
  // weights[b] belongs to block first_block + b; must outlive this.
  DenseLinearOp(const std::vector<BlockWeights>& weights, int first_block)
      : weights_(weights), first_block_(first_block) {}
  at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) override;

 private:
  const std::vector<BlockWeights>& weights_;
  int first_block_;
};

// cos and sin [positions, head_dim] in fp32 as transformers computes them, llama3 and linear
// scaling included.
struct RotaryTable {
  at::Tensor cos, sin;
};
RotaryTable MakeRotaryTable(const ModelGeometry& geometry, int64_t positions, at::Device device);

// x [sequences, tokens, hidden] -> the same shape.
at::Tensor RunBlock(const ModelGeometry& geometry, const BlockWeights& weights,
                    const RotaryTable& rotary, int block, const at::Tensor& x, LinearOp& linears,
                    Attention& attention);

// --- ends of the model ---

struct HeadWeights {
  at::Tensor norm;     // [hidden]
  at::Tensor lm_head;  // [vocab, hidden]; the embedding when tied
};

// tokens int32/int64 [sequences, tokens] -> [sequences, tokens, hidden] in the embedding's dtype.
at::Tensor Embed(const at::Tensor& embedding, const at::Tensor& tokens);
// [sequences, tokens, hidden] -> logits [sequences, tokens, vocab].
at::Tensor Logits(const ModelGeometry& geometry, const HeadWeights& head, const at::Tensor& x);
// Negative log-likelihood of tokens 1..T-1 given their past, fp32 [sequences, tokens - 1].
at::Tensor TokenLosses(const at::Tensor& logits, const at::Tensor& tokens);

// --- loading ---

// Converts to `dtype` on `device`. `with_linears` false leaves weight[i] undefined (biases and
// norms are read).
absl::StatusOr<BlockWeights> LoadBlock(const TensorSource& source, const ModelGeometry& geometry,
                                       int block, at::Device device, at::ScalarType dtype,
                                       bool with_linears);
absl::StatusOr<at::Tensor> LoadEmbedding(const TensorSource& source, const ModelGeometry& geometry,
                                         at::Device device, at::ScalarType dtype);
absl::StatusOr<HeadWeights> LoadHead(const TensorSource& source, const ModelGeometry& geometry,
                                     at::Device device, at::ScalarType dtype);

}  // namespace gradq
