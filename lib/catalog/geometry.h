#pragma once

// Model geometry from config.json: families, sizes, names and shapes of all tensors. No weights are
// touched.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

// Which attention linears have a bias: none, those of q, k and v, or all four where config.json's
// attention_bias says so.
enum class AttentionBias { kNone, kQkv, kFromConfig };
// Whether config.json's sliding_window applies: never, always, or only with use_sliding_window.
enum class SlidingWindow { kNone, kAlways, kWhenUsed };

// One row per supported family; what differs between them is data.
struct FamilyRow {
  std::string_view model_type;    // "llama"
  std::string_view architecture;  // "LlamaForCausalLM"
  AttentionBias attention_bias;
  bool mlp_bias;  // config.json's mlp_bias applies (absent: false)
  bool qk_norm;   // RMSNorm over head_dim of q and k before rotary
  SlidingWindow sliding_window;
  // What transformers assumes where config.json is silent; kv_heads 0: as many as heads; head_dim
  // 0: hidden_size / heads.
  int64_t default_kv_heads;
  int64_t default_head_dim;
  int64_t default_max_positions;
};
std::span<const FamilyRow> Families();

struct Rope {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

struct ModelGeometry {
  const FamilyRow* family = nullptr;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t blocks = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  int64_t sliding_window = 0;  // 0: none. A query at t sees keys in (t - window, t].
  Rope rope;
};

// `json`: the text of config.json; both spellings (transformers 4 and 5). INVALID_ARGUMENT naming
// the key and value; UNIMPLEMENTED for an unknown architecture, rope type or activation (the
// message lists the known ones).
absl::StatusOr<ModelGeometry> ParseGeometry(std::string_view json);

// The seven linears of a block in the order of checkpoint and computation.
enum class LinearKind { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kLinearsPerBlock = 7;

// The same by the input that they read.
inline constexpr LinearKind kQkv[] = {LinearKind::kQ, LinearKind::kK, LinearKind::kV};
inline constexpr LinearKind kAttentionOutput[] = {LinearKind::kO};
inline constexpr LinearKind kGateUp[] = {LinearKind::kGate, LinearKind::kUp};
inline constexpr LinearKind kMlpOutput[] = {LinearKind::kDown};
inline constexpr std::span<const LinearKind> kInputGroups[] = {kQkv, kAttentionOutput, kGateUp,
                                                               kMlpOutput};

struct LinearShape {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int block = 0;
  LinearKind kind = LinearKind::kQ;
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool bias = false;
};

// "model.layers.{block}.self_attn.q_proj"
std::string LinearName(int block, LinearKind kind);
LinearShape LinearOf(const ModelGeometry& geometry, int block, LinearKind kind);
// All linears: blocks in order, kinds in enum order.
std::vector<LinearShape> LinearsOf(const ModelGeometry& geometry);

// Names and shapes of every tensor the checkpoint must hold.
struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<TensorShape> TensorsOf(const ModelGeometry& geometry);
std::vector<TensorShape> BlockTensorsOf(const ModelGeometry& geometry, int block);

}  // namespace gradq
