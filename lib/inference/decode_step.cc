#include "lib/inference/decode_step.h"

#include <ATen/ops/empty_ops.h>
#include <ATen/ops/linear_ops.h>

#include "lib/base/status_macros.h"
#include "lib/inference/compute_queue.h"
#include "lib/inference/torch_status.h"
#include "lib/kernels/decode_ops.h"

namespace gradq {
namespace {

at::Tensor Empty(const std::vector<int64_t>& shape, at::ScalarType type, at::Device device) {
  return at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), type, {}, device, {},
                                             {});
}

kernels::FloatType FloatTypeOf(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return kernels::FloatType::kFloat32;
    case at::kHalf:
      return kernels::FloatType::kFloat16;
    default:
      GRADQ_CHECK(type == at::kBFloat16);
      return kernels::FloatType::kBFloat16;
  }
}

// Null for an undefined one. A token's rows are contiguous also where they are part of a larger
// product.
const void* DataOf(const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  GRADQ_CHECK(tensor.is_contiguous());
  return tensor.const_data_ptr();
}

}  // namespace

// What lives between two launches of one step.
struct DecodeStep::Buffers {
  kernels::Queue queue;
  kernels::FloatType type;
  at::Tensor residual;   // fp32 [hidden]
  at::Tensor normed;     // [1, 1, hidden], what linears read, as are the next two
  at::Tensor mixed;      // [1, 1, heads · head_dim], what attention gives
  at::Tensor activated;  // [1, 1, intermediate]
  at::Tensor rotated;    // [heads · head_dim]
  at::Tensor partial;    // fp32, of attention

  Buffers(const ModelGeometry& geometry, at::ScalarType scalar, at::Device device)
      : queue(ComputeQueue(device)),
        type(FloatTypeOf(scalar)),
        residual(Empty({geometry.hidden_size}, at::kFloat, device)),
        normed(Empty({1, 1, geometry.hidden_size}, scalar, device)),
        mixed(Empty({1, 1, geometry.heads * geometry.head_dim}, scalar, device)),
        activated(Empty({1, 1, geometry.intermediate_size}, scalar, device)),
        rotated(Empty({geometry.heads * geometry.head_dim}, scalar, device)) {}

  // residual += addend (may be undefined); normed = its norm.
  void AddAndNorm(const ModelGeometry& geometry, const at::Tensor& addend,
                  const at::Tensor& weight) const {
    kernels::AddRmsNormArgs args;
    args.type = type;
    args.residual = residual.mutable_data_ptr<float>();
    args.addend = DataOf(addend);
    args.weight = DataOf(weight);
    args.eps = static_cast<float>(geometry.rms_norm_eps);
    args.hidden = geometry.hidden_size;
    args.normed = normed.mutable_data_ptr();
    ThrowIfError(kernels::AddRmsNorm(queue, args));
  }
};

bool DecodeStep::Serves(const ModelGeometry& geometry) {
  return geometry.head_dim % 2 == 0 && geometry.head_dim <= kernels::kMaxHeadDim;
}

DecodeStep::DecodeStep(const Weights& weights, int multiprocessors)
    : weights_(weights),
      multiprocessors_(multiprocessors),
      input_(Empty({2}, at::kInt, weights.embedding.device())),
      logits_(Empty({weights.geometry.vocab_size}, at::kFloat, weights.embedding.device())) {
  GRADQ_CHECK(Serves(weights.geometry));
}

void DecodeStep::SetInput(int32_t token, int64_t position) {
  at::Tensor host = Empty({2}, at::kInt, at::kCPU);
  host.mutable_data_ptr<int32_t>()[0] = token;
  host.mutable_data_ptr<int32_t>()[1] = static_cast<int32_t>(position);
  input_.copy_(host);
}

void DecodeStep::RunAttention(const Buffers& buffers, const CachedAttention& attention,
                              const RotaryTable& rotary, int block) {
  const ModelGeometry& geometry = weights_.geometry;
  const BlockWeights& weights = weights_.blocks[block];
  const KeyValueCache& cache = attention.cache(block);
  const int32_t* position = input_.const_data_ptr<int32_t>() + 1;
  const std::vector<at::Tensor> qkv = weights_.linears.ApplyTogether(block, kQkv, buffers.normed);

  kernels::RotaryAppendArgs append;
  append.type = buffers.type;
  append.q = DataOf(qkv[0]);
  append.k = DataOf(qkv[1]);
  append.v = DataOf(qkv[2]);
  append.q_norm = DataOf(weights.q_norm);
  append.k_norm = DataOf(weights.k_norm);
  append.eps = static_cast<float>(geometry.rms_norm_eps);
  append.cos = static_cast<const float*>(DataOf(rotary.cos));
  append.sin = static_cast<const float*>(DataOf(rotary.sin));
  append.position = position;
  append.heads = geometry.heads;
  append.kv_heads = geometry.kv_heads;
  append.head_dim = geometry.head_dim;
  append.capacity = attention.capacity();
  append.rotated = buffers.rotated.mutable_data_ptr();
  append.keys = cache.keys.mutable_data_ptr();
  append.values = cache.values.mutable_data_ptr();
  ThrowIfError(kernels::RotaryAppend(buffers.queue, append));

  kernels::TokenAttentionArgs attend;
  attend.type = buffers.type;
  attend.q = append.rotated;
  attend.keys = append.keys;
  attend.values = append.values;
  attend.position = position;
  attend.window = geometry.sliding_window;
  attend.heads = geometry.heads;
  attend.kv_heads = geometry.kv_heads;
  attend.head_dim = geometry.head_dim;
  attend.capacity = attention.capacity();
  attend.splits =
      kernels::TokenAttentionSplits(geometry.kv_heads, attend.capacity, multiprocessors_);
  attend.partial = buffers.partial.defined() ? buffers.partial.mutable_data_ptr<float>() : nullptr;
  attend.out = buffers.mixed.mutable_data_ptr();
  ThrowIfError(kernels::TokenAttention(buffers.queue, attend));
}

void DecodeStep::Run(const CachedAttention& attention, const RotaryTable& rotary) {
  const ModelGeometry& geometry = weights_.geometry;
  GRADQ_CHECK(rotary.cos.size(0) >= attention.capacity());
  Buffers buffers(geometry, weights_.embedding.scalar_type(), device());
  kernels::TokenAttentionArgs sizes;
  sizes.heads = geometry.heads;
  sizes.head_dim = geometry.head_dim;
  sizes.splits =
      kernels::TokenAttentionSplits(geometry.kv_heads, attention.capacity(), multiprocessors_);
  const int64_t scratch = kernels::TokenAttentionScratch(sizes);
  if (scratch > 0) buffers.partial = Empty({scratch}, at::kFloat, device());

  kernels::EmbedTokenArgs embed;
  embed.type = buffers.type;
  embed.embedding = DataOf(weights_.embedding);
  embed.token = input_.const_data_ptr<int32_t>();
  embed.hidden = geometry.hidden_size;
  embed.residual = buffers.residual.mutable_data_ptr<float>();
  ThrowIfError(kernels::EmbedToken(buffers.queue, embed));

  at::Tensor added;  // of the block before
  for (int block = 0; block < static_cast<int>(weights_.blocks.size()); ++block) {
    const BlockWeights& weights = weights_.blocks[block];
    buffers.AddAndNorm(geometry, added, weights.input_norm);
    RunAttention(buffers, attention, rotary, block);
    added = weights_.linears.Apply(block, LinearKind::kO, buffers.mixed);
    buffers.AddAndNorm(geometry, added, weights.post_norm);
    const std::vector<at::Tensor> halves =
        weights_.linears.ApplyTogether(block, kGateUp, buffers.normed);
    kernels::SwigluArgs swiglu;
    swiglu.type = buffers.type;
    swiglu.gate = DataOf(halves[0]);
    swiglu.up = DataOf(halves[1]);
    swiglu.count = geometry.intermediate_size;
    swiglu.out = buffers.activated.mutable_data_ptr();
    ThrowIfError(kernels::SwigluVector(buffers.queue, swiglu));
    added = weights_.linears.Apply(block, LinearKind::kDown, buffers.activated);
  }
  buffers.AddAndNorm(geometry, added, weights_.head.norm);
  logits_.copy_(at::_ops::linear::call(buffers.normed, weights_.head.lm_head, {}).view({-1}));
}

}  // namespace gradq
