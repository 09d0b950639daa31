#include "lib/catalog/geometry.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/files.h"
#include "lib/catalog/strict_json.h"

namespace gradq {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

json Fixture(const std::string& name) {
  const auto text = ReadFile(std::string(GRADQ_FIXTURES) + "/" + name + "/config.json");
  EXPECT_TRUE(text.ok()) << text.status();
  return json::parse(*text);
}

// A config of transformers 4, as older checkpoints carry it.
json Old(const std::string& model_type, const std::string& architecture) {
  return {{"architectures", {architecture}},
          {"model_type", model_type},
          {"hidden_size", 64},
          {"intermediate_size", 172},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 100},
          {"max_position_embeddings", 256},
          {"rope_theta", 20000.0},
          {"rope_scaling", nullptr},
          {"rms_norm_eps", 1e-5},
          {"torch_dtype", "bfloat16"},
          {"tie_word_embeddings", false},
          {"hidden_act", "silu"}};
}

ModelGeometry Parse(const json& config) {
  const auto geometry = ParseGeometry(config.dump());
  EXPECT_TRUE(geometry.ok()) << geometry.status();
  return geometry.ok() ? *geometry : ModelGeometry{};
}

absl::Status Refused(const json& config) {
  const auto geometry = ParseGeometry(config.dump());
  EXPECT_FALSE(geometry.ok());
  return geometry.status();
}

TEST(Geometry, ReadsTransformers5) {
  const ModelGeometry g = Parse(Fixture("docs-llama-6m"));
  EXPECT_EQ(g.family->model_type, "llama");
  EXPECT_EQ(g.hidden_size, 256);
  EXPECT_EQ(g.intermediate_size, 688);
  EXPECT_EQ(g.blocks, 6);
  EXPECT_EQ(g.heads, 8);
  EXPECT_EQ(g.kv_heads, 4);
  EXPECT_EQ(g.head_dim, 32);
  EXPECT_EQ(g.vocab_size, 2048);
  EXPECT_EQ(g.max_positions, 1024);
  EXPECT_EQ(g.rope.theta, 500000.0);
  EXPECT_EQ(g.rms_norm_eps, 1e-5);
  EXPECT_FALSE(g.tied_embeddings);
  EXPECT_FALSE(g.qkv_bias);
  EXPECT_TRUE(Parse(Fixture("tiny-llama")).tied_embeddings);
}

TEST(Geometry, BothSpellingsOfRopeAgree) {
  json old = Old("llama", "LlamaForCausalLM");
  old["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  json now = Old("llama", "LlamaForCausalLM");
  now.erase("rope_theta");
  now.erase("rope_scaling");
  now["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 20000.0}};
  for (const json& config : {old, now}) {
    const ModelGeometry g = Parse(config);
    EXPECT_EQ(g.rope.type, Rope::Type::kLinear);
    EXPECT_EQ(g.rope.factor, 4.0);
    EXPECT_EQ(g.rope.theta, 20000.0);
  }
}

TEST(Geometry, Llama3Rope) {
  json config = Old("llama", "LlamaForCausalLM");
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  const ModelGeometry g = Parse(config);
  EXPECT_EQ(g.rope.type, Rope::Type::kLlama3);
  EXPECT_EQ(g.rope.original_max_position_embeddings, 8192);
  config["rope_scaling"]["high_freq_factor"] = 1.0;
  EXPECT_THAT(Refused(config).message(), HasSubstr("high_freq_factor"));
}

TEST(Geometry, RefusesOtherRopeByName) {
  for (const char* type : {"dynamic", "yarn", "longrope"}) {
    json config = Old("llama", "LlamaForCausalLM");
    config["rope_scaling"] = {{"rope_type", type}, {"factor", 2.0}};
    const absl::Status status = Refused(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(type), HasSubstr("llama3")));
  }
}

TEST(Geometry, BiasesByFamily) {
  json llama = Old("llama", "LlamaForCausalLM");
  llama["attention_bias"] = llama["mlp_bias"] = true;
  EXPECT_TRUE(Parse(llama).qkv_bias && Parse(llama).o_bias && Parse(llama).mlp_bias);
  const ModelGeometry qwen2 = Parse(Old("qwen2", "Qwen2ForCausalLM"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias);
  json mistral = Old("mistral", "MistralForCausalLM");
  mistral["attention_bias"] = true;  // MistralAttention has no such switch
  EXPECT_FALSE(Parse(mistral).qkv_bias);
}

TEST(Geometry, HeadDimIsFree) {
  json config = Old("qwen3", "Qwen3ForCausalLM");
  EXPECT_EQ(Parse(config).head_dim, 128);
  config["head_dim"] = 48;
  const ModelGeometry g = Parse(config);
  EXPECT_EQ(g.head_dim, 48);
  EXPECT_EQ(LinearOf(g, 1, LinearKind::kQ).out_features, 192);
  EXPECT_EQ(LinearOf(g, 1, LinearKind::kO).in_features, 192);
  EXPECT_EQ(LinearOf(g, 1, LinearKind::kK).out_features, 96);
  config["head_dim"] = 47;
  EXPECT_THAT(Refused(config).message(), HasSubstr("head_dim"));
  config["head_dim"] = nullptr;
  config["model_type"] = "llama";
  config["architectures"] = {"LlamaForCausalLM"};
  EXPECT_EQ(Parse(config).head_dim, 16);
}

TEST(Geometry, SlidingWindow) {
  json mistral = Old("mistral", "MistralForCausalLM");
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(Parse(mistral).sliding_window, 0);
  mistral["sliding_window"] = 32;
  EXPECT_EQ(Parse(mistral).sliding_window, 32);

  json qwen = Old("qwen2", "Qwen2ForCausalLM");
  qwen["sliding_window"] = 32;
  qwen["use_sliding_window"] = false;
  EXPECT_EQ(Parse(qwen).sliding_window, 0);
  qwen["use_sliding_window"] = true;
  qwen["max_window_layers"] = 2;
  EXPECT_EQ(Parse(qwen).sliding_window, 0);
  qwen["max_window_layers"] = 0;
  EXPECT_EQ(Parse(qwen).sliding_window, 32);
  qwen["max_window_layers"] = 1;
  EXPECT_EQ(Refused(qwen).code(), absl::StatusCode::kUnimplemented);
  qwen["layer_types"] = {"sliding_attention", "sliding_attention"};
  EXPECT_EQ(Parse(qwen).sliding_window, 32);
  qwen["layer_types"] = {"full_attention", "sliding_attention"};
  EXPECT_THAT(Refused(qwen).message(), HasSubstr("1 of 2"));
}

TEST(Geometry, UnknownArchitectureListsTheKnown) {
  const absl::Status status = Refused(Old("gpt2", "GPT2LMHeadModel"));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("gpt2"), HasSubstr("llama"), HasSubstr("mistral"), HasSubstr("qwen2"),
                    HasSubstr("qwen3")));
  EXPECT_THAT(Refused(Old("llama", "LlamaForSequenceClassification")).message(),
              HasSubstr("LlamaForSequenceClassification"));
  EXPECT_EQ(Refused(json::object()).code(), absl::StatusCode::kUnimplemented);
}

TEST(Geometry, RefusesAbsurdNumbers) {
  const std::pair<const char*, json> cases[] = {{"hidden_size", -1},
                                                {"hidden_size", 9000000000000000000},
                                                {"hidden_size", 18446744073709551615u},
                                                {"vocab_size", 1e30},
                                                {"vocab_size", 0},
                                                {"num_hidden_layers", 1 << 20},
                                                {"num_attention_heads", 0},
                                                {"num_attention_heads", "four"},
                                                {"num_key_value_heads", 3},
                                                {"intermediate_size", 12.5},
                                                {"rms_norm_eps", -1.0},
                                                {"rope_theta", 0},
                                                {"max_position_embeddings", false},
                                                {"tie_word_embeddings", "yes"},
                                                {"hidden_size", nullptr},
                                                {"rope_parameters", 3}};
  for (const auto& [key, value] : cases) {
    json config = Old("llama", "LlamaForCausalLM");
    config[key] = value;
    EXPECT_THAT(Refused(config).message(), AllOf(HasSubstr(key), HasSubstr("config.json")))
        << value;
  }
  json config = Old("llama", "LlamaForCausalLM");
  config["hidden_act"] = "gelu";
  EXPECT_THAT(Refused(config).message(), HasSubstr("gelu"));
}

TEST(Geometry, TensorsMatchTheFixture) {
  const ModelGeometry g = Parse(Fixture("tiny-llama"));
  const std::vector<TensorShape> tensors = TensorsOf(g);
  EXPECT_EQ(tensors.size(), 2 + 3 * 9u);
  EXPECT_EQ(tensors.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(tensors.back().name, "model.norm.weight");
  EXPECT_EQ(LinearsOf(g).size(), 21u);
  EXPECT_EQ(LinearsOf(g)[8].name, "model.layers.1.self_attn.k_proj");
}

TEST(StrictJson, RefusesWhatTheLibraryAccepts) {
  EXPECT_TRUE(ParseJson(R"({"a": [1, 2.5, "x", null, {"b": true}]})", "t").ok());
  EXPECT_EQ((*ParseJson(R"({"a": [1, {"b": true}]})", "t"))["a"][1]["b"], true);
  EXPECT_THAT(ParseJson(R"({"a": 1, "a": 2})", "t").status().message(),
              HasSubstr("key given twice: a"));
  EXPECT_THAT(ParseJson(std::string(100000, '['), "t").status().message(),
              HasSubstr("nested deeper"));
  for (const char* bad : {"", "{", "{} x", "{\"a\": }", "\"\xff\"", "1e999", "{'a': 1}", "nul"}) {
    EXPECT_EQ(ParseJson(bad, "t").status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_THAT(ParseJsonObject("[1]", "t").status().message(), HasSubstr("not a JSON object"));
}

}  // namespace
}  // namespace gradq
