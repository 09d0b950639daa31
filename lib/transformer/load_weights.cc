// Weights of blocks and ends from a TensorSource, by the names of Hugging Face checkpoints.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>

#include <cstring>
#include <string>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/transformer/block.h"

namespace gradq {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";

absl::StatusOr<at::Tensor> LoadTensor(const TensorSource& source, const std::string& name,
                                      std::vector<int64_t> shape, at::Device device,
                                      at::ScalarType dtype) {
  GRADQ_ASSIGN_OR_RETURN(const TensorInfo info, source.Find(name));
  if (info.shape != shape)
    return absl::InvalidArgumentError(
        StrCat("tensor has another shape than config.json says: ", name));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<float> values, source.ReadFloat32(name));
  at::Tensor tensor = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape),
                                                          at::kFloat, {}, at::kCPU, {}, {});
  std::memcpy(tensor.mutable_data_ptr<float>(), values.data(), values.size() * sizeof(float));
  return tensor.to(device, dtype);
}

}  // namespace

absl::StatusOr<BlockWeights> LoadBlock(const TensorSource& source, const ModelGeometry& geometry,
                                       int block, at::Device device, at::ScalarType dtype,
                                       bool with_linears) {
  const std::string prefix = StrCat("model.layers.", block, ".");
  const auto load = [&](const std::string& name, std::vector<int64_t> shape) {
    return LoadTensor(source, name, std::move(shape), device, dtype);
  };
  BlockWeights weights;
  GRADQ_ASSIGN_OR_RETURN(weights.input_norm,
                         load(prefix + "input_layernorm.weight", {geometry.hidden_size}));
  GRADQ_ASSIGN_OR_RETURN(weights.post_norm,
                         load(prefix + "post_attention_layernorm.weight", {geometry.hidden_size}));
  if (geometry.family->qk_norm) {
    GRADQ_ASSIGN_OR_RETURN(weights.q_norm,
                           load(prefix + "self_attn.q_norm.weight", {geometry.head_dim}));
    GRADQ_ASSIGN_OR_RETURN(weights.k_norm,
                           load(prefix + "self_attn.k_norm.weight", {geometry.head_dim}));
  }
  for (int i = 0; i < kLinearsPerBlock; ++i) {
    const LinearShape linear = LinearOf(geometry, block, static_cast<LinearKind>(i));
    if (with_linears) {
      GRADQ_ASSIGN_OR_RETURN(weights.weight[i], load(linear.name + ".weight",
                                                     {linear.out_features, linear.in_features}));
    }
    if (linear.bias) {
      GRADQ_ASSIGN_OR_RETURN(weights.bias[i], load(linear.name + ".bias", {linear.out_features}));
    }
  }
  return weights;
}

absl::StatusOr<at::Tensor> LoadEmbedding(const TensorSource& source, const ModelGeometry& geometry,
                                         at::Device device, at::ScalarType dtype) {
  return LoadTensor(source, kEmbedding, {geometry.vocab_size, geometry.hidden_size}, device, dtype);
}

absl::StatusOr<HeadWeights> LoadHead(const TensorSource& source, const ModelGeometry& geometry,
                                     at::Device device, at::ScalarType dtype) {
  HeadWeights head;
  GRADQ_ASSIGN_OR_RETURN(
      head.norm, LoadTensor(source, "model.norm.weight", {geometry.hidden_size}, device, dtype));
  GRADQ_ASSIGN_OR_RETURN(
      head.lm_head, LoadTensor(source, geometry.tied_embeddings ? kEmbedding : "lm_head.weight",
                               {geometry.vocab_size, geometry.hidden_size}, device, dtype));
  return head;
}

}  // namespace gradq
