#include "lib/transformer/block.h"

#include <ATen/ops/arange_ops.h>
#include <ATen/ops/embedding_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/linear_ops.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "lib/base/status_macros.h"
#include "lib/transformer/fused_ops.h"

namespace gradq {
namespace {

// Frequencies per pair of dimensions, as transformers computes them (fp32 division and power).
std::vector<float> InverseFrequencies(const ModelGeometry& geometry) {
  const Rope& rope = geometry.rope;
  const int64_t pairs = geometry.head_dim / 2;
  std::vector<float> result(pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(geometry.head_dim);
    const float frequency = 1.0f / std::pow(static_cast<float>(rope.theta), exponent);
    result[i] = frequency;
    if (rope.type == Rope::Type::kLinear) result[i] = frequency / static_cast<float>(rope.factor);
    if (rope.type != Rope::Type::kLlama3) continue;
    // Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
    const double context = static_cast<double>(rope.original_max_position_embeddings);
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength > context / rope.low_freq_factor) {
      result[i] = static_cast<float>(frequency / rope.factor);
    } else if (wavelength >= context / rope.high_freq_factor) {
      const double smooth = (context / wavelength - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
      result[i] = static_cast<float>((1 - smooth) * frequency / rope.factor + smooth * frequency);
    }
  }
  return result;
}

}  // namespace

RotaryTable MakeRotaryTable(const ModelGeometry& geometry, int64_t positions, at::Device device) {
  const std::vector<float> frequencies = InverseFrequencies(geometry);
  const auto half = static_cast<int64_t>(frequencies.size());
  const auto make = [&](float (*function)(float)) {
    at::Tensor table = at::_ops::empty_memory_format::call(
        c10::fromIntArrayRefSlow({positions, 2 * half}), at::kFloat, {}, at::kCPU, {}, {});
    float* data = table.mutable_data_ptr<float>();
    for (int64_t t = 0; t < positions; ++t) {
      for (int64_t i = 0; i < half; ++i) {
        const float value = function(static_cast<float>(t) * frequencies[i]);
        data[t * 2 * half + i] = value;
        data[t * 2 * half + half + i] = value;
      }
    }
    return table.to(device);
  };
  return {.cos = make([](float x) { return std::cos(x); }),
          .sin = make([](float x) { return std::sin(x); })};
}

at::Tensor CausalAttention::Attend(int /*block*/, const at::Tensor& q, const at::Tensor& k,
                                   const at::Tensor& v) {
  if (AttentionHasKernel(q)) return CausalAttentionOnKernels(q, k, v, geometry_.sliding_window);
  const auto repeat = [&](const at::Tensor& x) {
    const int64_t times = geometry_.heads / geometry_.kv_heads;
    if (times == 1) return x;
    const at::Tensor expanded =
        x.unsqueeze(2).expand({x.size(0), x.size(1), times, x.size(2), x.size(3)});
    return expanded.reshape({x.size(0), x.size(1) * times, x.size(2), x.size(3)});
  };
  const int64_t tokens = q.size(2);
  std::optional<at::Tensor> mask;
  const bool windowed = geometry_.sliding_window > 0 && geometry_.sliding_window < tokens;
  if (windowed) {
    if (!mask_.defined() || mask_.size(0) != tokens) {
      const at::Tensor t =
          at::_ops::arange::call(tokens, at::kLong, at::kStrided, q.device(), false);
      const at::Tensor age = t.unsqueeze(1).sub(t.unsqueeze(0));
      const at::Tensor hidden = age.lt(0).logical_or(age.ge(geometry_.sliding_window));
      mask_ =
          hidden.to(q.scalar_type()).masked_fill(hidden, -std::numeric_limits<double>::infinity());
    }
    mask = mask_;
  }
  return at::_ops::scaled_dot_product_attention::call(q, repeat(k), repeat(v), mask, 0.0,
                                                      /*is_causal=*/!windowed, std::nullopt, false);
}

std::vector<at::Tensor> LinearOp::ApplyTogether(int block, std::span<const LinearKind> kinds,
                                                const at::Tensor& x) {
  std::vector<at::Tensor> results;
  for (const LinearKind kind : kinds) results.push_back(Apply(block, kind, x));
  return results;
}

at::Tensor DenseLinearOp::Apply(int block, LinearKind kind, const at::Tensor& x) {
  const BlockWeights& weights = weights_[block - first_block_];
  const int i = static_cast<int>(kind);
  GRADQ_CHECK(weights.weight[i].defined());
  std::optional<at::Tensor> bias;
  if (weights.bias[i].defined()) bias = weights.bias[i];
  return at::_ops::linear::call(x, weights.weight[i], bias);
}

at::Tensor RunBlock(const ModelGeometry& geometry, const BlockWeights& weights,
                    const RotaryTable& rotary, int block, const at::Tensor& x, LinearOp& linears,
                    Attention& attention) {
  const int64_t tokens = x.size(1);
  GRADQ_CHECK(attention.position() + tokens <= rotary.cos.size(0));
  const at::Tensor normed = RmsNorm(x, weights.input_norm, geometry.rms_norm_eps);
  const std::vector<at::Tensor> projected = linears.ApplyTogether(block, kQkv, normed);
  const auto split = [&](const at::Tensor& flat, int64_t heads) {
    return flat.view({x.size(0), tokens, heads, geometry.head_dim});
  };
  at::Tensor q = split(projected[0], geometry.heads);
  at::Tensor k = split(projected[1], geometry.kv_heads);
  const at::Tensor v = split(projected[2], geometry.kv_heads);
  if (weights.q_norm.defined()) {
    q = RmsNorm(q, weights.q_norm, geometry.rms_norm_eps);
    k = RmsNorm(k, weights.k_norm, geometry.rms_norm_eps);
  }
  const int64_t begin = attention.position();
  const at::Tensor cos = rotary.cos.slice(0, begin, begin + tokens);
  const at::Tensor sin = rotary.sin.slice(0, begin, begin + tokens);
  const at::Tensor heads = attention.Attend(block, Rotate(q, cos, sin).transpose(1, 2),
                                            Rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2));
  const at::Tensor mixed =
      heads.transpose(1, 2).reshape({x.size(0), tokens, geometry.heads * geometry.head_dim});
  // The residual stream keeps the dtype of x, whatever the linears compute in.
  const at::Tensor middle = x.add(linears.Apply(block, LinearKind::kO, mixed).to(x.scalar_type()));

  const at::Tensor inner = RmsNorm(middle, weights.post_norm, geometry.rms_norm_eps);
  const std::vector<at::Tensor> halves = linears.ApplyTogether(block, kGateUp, inner);
  const at::Tensor activated = Swiglu(halves[0], halves[1]);
  return middle.add(linears.Apply(block, LinearKind::kDown, activated).to(x.scalar_type()));
}

at::Tensor Embed(const at::Tensor& embedding, const at::Tensor& tokens) {
  return at::_ops::embedding::call(embedding, tokens.to(embedding.device(), at::kLong), -1, false,
                                   false);
}

at::Tensor Logits(const ModelGeometry& geometry, const HeadWeights& head, const at::Tensor& x) {
  return at::_ops::linear::call(RmsNorm(x, head.norm, geometry.rms_norm_eps), head.lm_head, {});
}

at::Tensor TokenLosses(const at::Tensor& logits, const at::Tensor& tokens) {
  const int64_t length = tokens.size(1);
  const at::Tensor targets =
      tokens.slice(1, 1, length).to(logits.device(), at::kLong).unsqueeze(-1);
  const at::Tensor log_probabilities =
      logits.slice(1, 0, length - 1).to(at::kFloat).log_softmax(-1);
  return log_probabilities.gather(-1, targets).squeeze(-1).neg();
}

}  // namespace gradq
