// decode_cuda without a device: the whole measurement runs on the CPU with a small model.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/bench/decode_bench_cuda.h"
#include "tests/bench/decode_model_cuda.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

ModelGeometry SmallGeometry() {
  return *ParseGeometry(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
      "num_key_value_heads": 2, "vocab_size": 40, "rms_norm_eps": 1e-5, "hidden_act": "silu",
      "max_position_embeddings": 64, "num_hidden_layers": 2})");
}

TEST(DecodeModel, Llama7bHasItsSizes) {
  const auto geometry = ParseGeometry(Llama7bConfig(32));
  ASSERT_TRUE(geometry.ok()) << geometry.status();
  int64_t weights = 0;
  for (const LinearShape& shape : LinearsOf(*geometry))
    weights += shape.out_features * shape.in_features;
  EXPECT_EQ(weights, int64_t{32} * (4 * 4096 * 4096 + 3 * 4096 * 11008));
  EXPECT_EQ(geometry->head_dim, 128);
}

// Fused products are those of the single linears, in the places where the step looks for them.
TEST(DecodeModel, FusedDenseLinearsAgreeWithSingleOnes) {
  FusedDenseOp op(SmallGeometry(), at::kFloat, at::kCPU);
  const ModelEnds ends = MakeModelEnds(SmallGeometry(), at::kFloat, at::kCPU);
  const at::Tensor x = ends.embedding.slice(0, 0, 1).view({1, 1, 64});
  const std::vector<at::Tensor> qkv = op.ApplyTogether(1, kQkv, x);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(qkv[i].allclose(op.Apply(1, kQkv[i], x), 1e-5, 1e-6));
  }
  EXPECT_EQ(qkv[0].size(2), 64);
  EXPECT_EQ(qkv[1].size(2), 32);
  EXPECT_FALSE(qkv[1].allclose(qkv[2]));
  const std::vector<at::Tensor> up = op.ApplyTogether(0, kGateUp, x);
  EXPECT_TRUE(up[1].allclose(op.Apply(0, LinearKind::kUp, x), 1e-5, 1e-6));
  EXPECT_EQ(op.bytes(), 2 * 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64));
}

TEST(DecodeBench, MeasuresEveryPartOfEveryVariant) {
  DecodeFlags flags;
  flags.bits = {2, 4};
  flags.outliers = 1;
  flags.context = 9;
  flags.tokens = 4;
  flags.rounds = 2;
  flags.steps = 2;
  at::set_num_threads(1);
  const auto rows = RunDecodeBench(flags, SmallGeometry(), DecodePlace());
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 3u);
  EXPECT_EQ((*rows)[0].linears, "dense fp16");
  EXPECT_EQ((*rows)[2].linears, "4 bits + 1 %");
  for (const DecodeRow& row : *rows) {
    EXPECT_TRUE(row.repeatable);
    EXPECT_GT(row.token_seconds, 0);
    EXPECT_GT(row.step_seconds, 0);
    const DecodeParts& parts = row.parts;
    for (const double seconds :
         {parts.qkv, parts.o, parts.gate_up, parts.down, parts.head, parts.attention}) {
      EXPECT_GT(seconds, 0);
      EXPECT_LT(seconds, 0.1);
    }
    EXPECT_EQ(row.head_bytes, 40 * 64 * 2);
    // K and V of 2 heads of 16 in fp16, 2 blocks.
    EXPECT_EQ(row.cache_bytes, 9 * 2 * 2 * 2 * 16 * 2);
  }
  EXPECT_EQ((*rows)[0].linear_bytes, 2 * 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64));
  EXPECT_LT((*rows)[1].linear_bytes, (*rows)[2].linear_bytes);
}

TEST(DecodeBench, RefusesWhatThePositionsDoNotHold) {
  DecodeFlags flags;
  flags.context = 60;
  flags.tokens = 5;
  const auto rows = RunDecodeBench(flags, SmallGeometry(), DecodePlace());
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument);
}

DecodeRow Row(int bits, double token_us, double step_us, int64_t linear_bytes) {
  DecodeRow row;
  row.linears = bits == 16 ? "dense fp16" : std::to_string(bits) + " bits";
  row.bits = bits;
  row.context = 128;
  row.token_seconds = token_us * 1e-6;
  row.step_seconds = step_us * 1e-6;
  row.linear_bytes = linear_bytes;
  row.head_bytes = 262'144'000;
  row.cache_bytes = 67'108'864;
  row.parts = {100e-6, 40e-6, 200e-6, 100e-6, 80e-6, 60e-6, 20e-6};
  row.repeatable = true;
  return row;
}

TEST(DecodeRows, CompareWithDenseAndTheBars) {
  const std::vector<DecodeRow> rows = {Row(16, 4000, 3900, 12'952'010'752),
                                       Row(3, 1600, 1500, 2'400'000'000),
                                       Row(2, 1250, 1000, 1'700'000'000)};
  EXPECT_DOUBLE_EQ(TokensPerSecond(rows[1]), 625);
  EXPECT_DOUBLE_EQ(*OverDense(rows[1], rows), 2.5);
  EXPECT_NEAR(DecodeReadShare(rows[2], 3e12), 2.029252864e9 / 1e-3 / 3e12, 1e-9);
  const std::string text = DecodeTables(rows, 3e12);
  EXPECT_THAT(text, HasSubstr("| dense fp16 | 128 | 250.0 | 1.00 |  | 3900.0 |"));
  EXPECT_THAT(text, HasSubstr("| 3 bits | 128 | 625.0 | 2.50 | 2.6 MISSED | 1500.0 | 2400.0 |"));
  EXPECT_THAT(text, HasSubstr("| 2 bits | 128 | 800.0 | 3.20 | 3.0 met |"));
  // 1000 us less the parts' 600 are between them; 250 us are the host's.
  EXPECT_THAT(text, HasSubstr("| 2 bits | 100.0 | 40.0 | 200.0 | 100.0 | 80.0 | 60.0 | 20.0 | "
                              "400.0 | 250.0 |"));
  const nlohmann::json json = ToJson(rows[1], 3e12);
  EXPECT_DOUBLE_EQ(json.at("parts_us").at("gate_up").get<double>(), 200);
  EXPECT_FALSE(OverDense(rows[1], std::vector<DecodeRow>{rows[1]}).has_value());
}

}  // namespace
}  // namespace gradq
