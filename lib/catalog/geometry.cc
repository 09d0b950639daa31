#include "lib/catalog/geometry.h"

#include <cmath>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/strict_json.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr FamilyRow kFamilies[] = {
    {.model_type = "llama",
     .architecture = "LlamaForCausalLM",
     .attention_bias = AttentionBias::kFromConfig,
     .mlp_bias = true,
     .qk_norm = false,
     .sliding_window = SlidingWindow::kNone,
     .default_kv_heads = 0,
     .default_head_dim = 0,
     .default_max_positions = 2048},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .attention_bias = AttentionBias::kNone,
     .mlp_bias = false,
     .qk_norm = false,
     .sliding_window = SlidingWindow::kAlways,
     .default_kv_heads = 8,
     .default_head_dim = 0,
     .default_max_positions = 131072},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .attention_bias = AttentionBias::kQkv,
     .mlp_bias = false,
     .qk_norm = false,
     .sliding_window = SlidingWindow::kWhenUsed,
     .default_kv_heads = 32,
     .default_head_dim = 0,
     .default_max_positions = 32768},
    {.model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .attention_bias = AttentionBias::kFromConfig,
     .mlp_bias = false,
     .qk_norm = true,
     .sliding_window = SlidingWindow::kWhenUsed,
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_max_positions = 32768},
};

constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxBlocks = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 31;
constexpr int64_t kMistralWindow = 4096;  // what MistralConfig assumes where the key is absent

absl::StatusOr<const FamilyRow*> FindFamily(const ConfigReader& config) {
  GRADQ_ASSIGN_OR_RETURN(const std::string type, config.Word("model_type", ""));
  for (const FamilyRow& row : kFamilies) {
    if (row.model_type == type) {
      GRADQ_ASSIGN_OR_RETURN(const std::string architecture,
                             config.FirstWord("architectures", row.architecture));
      if (architecture == row.architecture) return &row;
      return absl::UnimplementedError(StrCat(kConfigFile, ": unknown architecture: ", architecture,
                                             " of model_type ", type,
                                             "; known: ", row.architecture));
    }
  }
  std::string known;
  for (const FamilyRow& row : kFamilies)
    known += StrCat(known.empty() ? "" : ", ", row.model_type, " (", row.architecture, ")");
  return absl::UnimplementedError(StrCat(kConfigFile, ": unknown architecture: model_type ",
                                         type.empty() ? "(none)" : type, "; known: ", known));
}

absl::Status ReadSizes(const ConfigReader& config, ModelGeometry* g) {
  GRADQ_ASSIGN_OR_RETURN(g->hidden_size, config.Size("hidden_size", 1, kMaxWidth));
  GRADQ_ASSIGN_OR_RETURN(g->intermediate_size, config.Size("intermediate_size", 1, kMaxWidth));
  GRADQ_ASSIGN_OR_RETURN(g->blocks, config.Size("num_hidden_layers", 1, kMaxBlocks));
  GRADQ_ASSIGN_OR_RETURN(g->heads, config.Size("num_attention_heads", 1, kMaxWidth));
  GRADQ_ASSIGN_OR_RETURN(g->vocab_size, config.Size("vocab_size", 1, kMaxVocab));
  const int64_t kv_default =
      g->family->default_kv_heads == 0 ? g->heads : g->family->default_kv_heads;
  GRADQ_ASSIGN_OR_RETURN(g->kv_heads, config.Size("num_key_value_heads", 1, kMaxWidth, kv_default));
  GRADQ_ASSIGN_OR_RETURN(g->max_positions, config.Size("max_position_embeddings", 1, kMaxPositions,
                                                       g->family->default_max_positions));
  if (g->heads % g->kv_heads != 0) {
    return config.Refuse("num_attention_heads not divisible by num_key_value_heads",
                         StrCat(g->heads, ", ", g->kv_heads));
  }
  int64_t head_dim = g->family->default_head_dim;
  if (head_dim == 0 && !config.Has("head_dim")) {
    if (g->hidden_size % g->heads != 0) {
      return config.Refuse("hidden_size not divisible by num_attention_heads and no head_dim given",
                           StrCat(g->hidden_size, ", ", g->heads));
    }
    head_dim = g->hidden_size / g->heads;
  }
  GRADQ_ASSIGN_OR_RETURN(g->head_dim, config.Size("head_dim", 2, kMaxHeadDim, head_dim));
  if (g->head_dim % 2 != 0 || g->head_dim > kMaxHeadDim || g->head_dim < 2) {
    return config.Refuse(StrCat("head_dim must be even and in 2..", kMaxHeadDim),
                         StrCat(g->head_dim));
  }
  if (g->heads * g->head_dim > kMaxWidth) {
    return config.Refuse(StrCat("num_attention_heads × head_dim above ", kMaxWidth),
                         StrCat(g->heads, " × ", g->head_dim));
  }
  GRADQ_ASSIGN_OR_RETURN(g->rms_norm_eps, config.Number("rms_norm_eps", 1e-6));
  if (!(g->rms_norm_eps >= 0 && g->rms_norm_eps < 1)) {
    return config.Refuse("rms_norm_eps must be in [0, 1)", StrCat(g->rms_norm_eps));
  }
  return absl::OkStatus();
}

absl::Status ReadFlags(const ConfigReader& config, ModelGeometry* g) {
  GRADQ_ASSIGN_OR_RETURN(g->tied_embeddings, config.Flag("tie_word_embeddings", false));
  GRADQ_ASSIGN_OR_RETURN(const bool attention_bias, config.Flag("attention_bias", false));
  switch (g->family->attention_bias) {
    case AttentionBias::kNone:
      break;
    case AttentionBias::kQkv:
      g->qkv_bias = true;
      break;
    case AttentionBias::kFromConfig:
      g->qkv_bias = g->o_bias = attention_bias;
      break;
  }
  if (g->family->mlp_bias) {
    GRADQ_ASSIGN_OR_RETURN(g->mlp_bias, config.Flag("mlp_bias", false));
  }
  GRADQ_ASSIGN_OR_RETURN(const std::string activation, config.Word("hidden_act", "silu"));
  if (activation != "silu") {
    return absl::UnimplementedError(
        StrCat(kConfigFile, ": unknown hidden_act: ", activation, "; known: silu"));
  }
  return absl::OkStatus();
}

// The number of blocks whose attention slides, by layer_types or, in older files, by
// max_window_layers.
absl::StatusOr<int64_t> CountSlidingBlocks(const ConfigReader& config, const ModelGeometry& g,
                                           bool used) {
  if (config.Has("layer_types")) {
    GRADQ_ASSIGN_OR_RETURN(const std::vector<std::string> types, config.Words("layer_types"));
    if (static_cast<int64_t>(types.size()) != g.blocks) {
      return config.Refuse("layer_types and num_hidden_layers differ",
                           StrCat(types.size(), ", ", g.blocks));
    }
    int64_t sliding = 0;
    for (const std::string& type : types) {
      if (type != "full_attention" && type != "sliding_attention") {
        return absl::UnimplementedError(StrCat(kConfigFile, ": unknown layer type: ", type,
                                               "; known: full_attention, sliding_attention"));
      }
      sliding += type == "sliding_attention" ? 1 : 0;
    }
    return sliding;
  }
  if (!used) return 0;
  if (g.family->sliding_window == SlidingWindow::kAlways) return g.blocks;
  GRADQ_ASSIGN_OR_RETURN(const int64_t full,
                         config.Size("max_window_layers", 0, kMaxBlocks * 1024, 28));
  return full >= g.blocks ? 0 : g.blocks - full;
}

absl::Status ReadSlidingWindow(const ConfigReader& config, ModelGeometry* g) {
  bool used = g->family->sliding_window == SlidingWindow::kAlways;
  if (g->family->sliding_window == SlidingWindow::kWhenUsed) {
    GRADQ_ASSIGN_OR_RETURN(used, config.Flag("use_sliding_window", false));
  }
  int64_t window = 0;
  if (used && (config.Has("sliding_window") || !config.Mentions("sliding_window"))) {
    GRADQ_ASSIGN_OR_RETURN(window, config.Size("sliding_window", 1, kMaxPositions, kMistralWindow));
  }
  GRADQ_ASSIGN_OR_RETURN(const int64_t sliding, CountSlidingBlocks(config, *g, window > 0));
  if (sliding == 0) return absl::OkStatus();
  if (sliding != g->blocks) {
    return absl::UnimplementedError(StrCat(
        kConfigFile, ": blocks that mix sliding and full attention are not supported: ", sliding,
        " of ", g->blocks, " slide"));
  }
  if (window == 0)
    return config.Refuse("layer_types announce sliding attention without a sliding_window in use",
                         "layer_types");
  g->sliding_window = window;
  return absl::OkStatus();
}

absl::Status ReadRope(const ConfigReader& config, ModelGeometry* g) {
  // transformers 5 writes rope_parameters with rope_theta inside; transformers 4 rope_theta beside
  // rope_scaling.
  const char* key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  GRADQ_ASSIGN_OR_RETURN(const ConfigReader rope, config.Object(key));
  GRADQ_ASSIGN_OR_RETURN(const double theta, config.Number("rope_theta", 10000.0));
  GRADQ_ASSIGN_OR_RETURN(g->rope.theta, rope.Number("rope_theta", theta));
  if (!(g->rope.theta > 0))
    return rope.Refuse("rope_theta must be positive", StrCat(g->rope.theta));
  for (const ConfigReader* place : {&config, &rope}) {
    GRADQ_ASSIGN_OR_RETURN(const double share, place->Number("partial_rotary_factor", 1.0));
    if (share != 1.0) {
      return absl::UnimplementedError(
          StrCat(kConfigFile, ": partial_rotary_factor other than 1 is not supported: ", share));
    }
  }

  GRADQ_ASSIGN_OR_RETURN(const std::string old_type, rope.Word("type", "default"));
  GRADQ_ASSIGN_OR_RETURN(const std::string type, rope.Word("rope_type", old_type));
  if (type == "default") return absl::OkStatus();
  if (type != "linear" && type != "llama3") {
    return absl::UnimplementedError(
        StrCat(kConfigFile, ": unknown rope type: ", type, "; known: default, linear, llama3"));
  }
  GRADQ_ASSIGN_OR_RETURN(g->rope.factor, rope.Number("factor"));
  if (!(g->rope.factor >= 1))
    return rope.Refuse("factor must be at least 1", StrCat(g->rope.factor));
  g->rope.type = type == "linear" ? Rope::Type::kLinear : Rope::Type::kLlama3;
  if (g->rope.type == Rope::Type::kLinear) return absl::OkStatus();

  GRADQ_ASSIGN_OR_RETURN(g->rope.low_freq_factor, rope.Number("low_freq_factor"));
  GRADQ_ASSIGN_OR_RETURN(g->rope.high_freq_factor, rope.Number("high_freq_factor"));
  if (!(g->rope.low_freq_factor > 0 && g->rope.high_freq_factor > g->rope.low_freq_factor)) {
    return rope.Refuse("high_freq_factor must be above low_freq_factor above 0",
                       StrCat(g->rope.high_freq_factor, ", ", g->rope.low_freq_factor));
  }
  GRADQ_ASSIGN_OR_RETURN(
      g->rope.original_max_position_embeddings,
      rope.Size("original_max_position_embeddings", 1, kMaxPositions, g->max_positions));
  return absl::OkStatus();
}

constexpr const char* kLinearNames[kLinearsPerBlock] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

}  // namespace

std::span<const FamilyRow> Families() { return kFamilies; }

absl::StatusOr<ModelGeometry> ParseGeometry(std::string_view text) {
  GRADQ_ASSIGN_OR_RETURN(const json value, ParseJsonObject(text, kConfigFile));
  const ConfigReader config(value, "");
  ModelGeometry geometry;
  GRADQ_ASSIGN_OR_RETURN(geometry.family, FindFamily(config));
  GRADQ_RETURN_IF_ERROR(ReadSizes(config, &geometry));
  GRADQ_RETURN_IF_ERROR(ReadFlags(config, &geometry));
  GRADQ_RETURN_IF_ERROR(ReadSlidingWindow(config, &geometry));
  GRADQ_RETURN_IF_ERROR(ReadRope(config, &geometry));
  return geometry;
}

std::string LinearName(int block, LinearKind kind) {
  return StrCat("model.layers.", block, ".", kLinearNames[static_cast<int>(kind)]);
}

LinearShape LinearOf(const ModelGeometry& geometry, int block, LinearKind kind) {
  const int64_t queries = geometry.heads * geometry.head_dim,
                keys = geometry.kv_heads * geometry.head_dim;
  LinearShape shape{.name = LinearName(block, kind), .block = block, .kind = kind};
  const auto set = [&](int64_t out, int64_t in, bool bias) {
    shape.out_features = out;
    shape.in_features = in;
    shape.bias = bias;
  };
  switch (kind) {
    case LinearKind::kQ:
      set(queries, geometry.hidden_size, geometry.qkv_bias);
      break;
    case LinearKind::kK:
    case LinearKind::kV:
      set(keys, geometry.hidden_size, geometry.qkv_bias);
      break;
    case LinearKind::kO:
      set(geometry.hidden_size, queries, geometry.o_bias);
      break;
    case LinearKind::kGate:
    case LinearKind::kUp:
      set(geometry.intermediate_size, geometry.hidden_size, geometry.mlp_bias);
      break;
    case LinearKind::kDown:
      set(geometry.hidden_size, geometry.intermediate_size, geometry.mlp_bias);
      break;
  }
  return shape;
}

std::vector<LinearShape> LinearsOf(const ModelGeometry& geometry) {
  std::vector<LinearShape> linears;
  for (int block = 0; block < geometry.blocks; ++block) {
    for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
      linears.push_back(LinearOf(geometry, block, static_cast<LinearKind>(kind)));
    }
  }
  return linears;
}

std::vector<TensorShape> BlockTensorsOf(const ModelGeometry& geometry, int block) {
  const std::string prefix = StrCat("model.layers.", block, ".");
  std::vector<TensorShape> tensors;
  tensors.push_back({prefix + "input_layernorm.weight", {geometry.hidden_size}});
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    const LinearShape linear = LinearOf(geometry, block, static_cast<LinearKind>(kind));
    tensors.push_back({linear.name + ".weight", {linear.out_features, linear.in_features}});
    if (linear.bias) tensors.push_back({linear.name + ".bias", {linear.out_features}});
  }
  if (geometry.family->qk_norm) {
    tensors.push_back({prefix + "self_attn.q_norm.weight", {geometry.head_dim}});
    tensors.push_back({prefix + "self_attn.k_norm.weight", {geometry.head_dim}});
  }
  tensors.push_back({prefix + "post_attention_layernorm.weight", {geometry.hidden_size}});
  return tensors;
}

std::vector<TensorShape> TensorsOf(const ModelGeometry& geometry) {
  std::vector<TensorShape> tensors;
  tensors.push_back({"model.embed_tokens.weight", {geometry.vocab_size, geometry.hidden_size}});
  for (int block = 0; block < geometry.blocks; ++block) {
    for (TensorShape& tensor : BlockTensorsOf(geometry, block))
      tensors.push_back(std::move(tensor));
  }
  tensors.push_back({"model.norm.weight", {geometry.hidden_size}});
  if (!geometry.tied_embeddings)
    tensors.push_back({"lm_head.weight", {geometry.vocab_size, geometry.hidden_size}});
  return tensors;
}

}  // namespace gradq
