#pragma once

// A model of one block and a few hundred weights, as bytes: inputs stay small enough to be mutated
// thoroughly.

#include <string>

#include "lib/catalog/geometry.h"
#include "lib/format/packing.h"
#include "lib/format/safetensors.h"

namespace gradq {

inline constexpr char kSmallConfig[] =
    R"({"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_size":6,"intermediate_size":10,"num_hidden_layers":1,)"
    R"("num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":5,"max_position_embeddings":64,"rms_norm_eps":1e-06,)"
    R"("rope_theta":10000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
    R"("original_max_position_embeddings":32},"use_sliding_window":false,"tie_word_embeddings":true,"hidden_act":"silu"})";

// Tensors [begin, end) of the model's list as a safetensors file of fp16 values.
inline std::string SmallWeights(size_t begin, size_t end) {
  std::vector<TensorInfo> infos;
  std::string data;
  const std::vector<TensorShape> tensors = TensorsOf(*ParseGeometry(kSmallConfig));
  for (size_t i = begin; i < std::min(end, tensors.size()); ++i) {
    TensorInfo info;
    info.name = tensors[i].name;
    info.dtype = DType::kF16;
    info.shape = tensors[i].shape;
    info.bytes = 2 * info.elements();
    for (int64_t j = 0; j < info.elements(); ++j) {
      const uint16_t half =
          Float16Bits(static_cast<float>((j * 37 + static_cast<int64_t>(i)) % 19) * 0.1f - 0.9f);
      data.append(reinterpret_cast<const char*>(&half), 2);
    }
    infos.push_back(std::move(info));
  }
  return SafetensorsPrefix(infos, {{"format", "pt"}}) + data;
}

}  // namespace gradq
