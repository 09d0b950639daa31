#include "lib/catalog/plan.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/files.h"
#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelGeometry Geometry(const std::string& name) {
  return *ParseGeometry(*ReadFile(std::string(GRADQ_FIXTURES) + "/" + name + "/config.json"));
}

// Llama-2-7B.
ModelGeometry Large() {
  return *ParseGeometry(
      R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096})");
}

PlanInputs Inputs(ModelGeometry geometry) {
  PlanInputs inputs;
  inputs.geometry = std::move(geometry);
  inputs.recipe.method = "lnq";
  return inputs;
}

std::vector<int> Sizes(const Plan& plan, int blocks) {
  std::vector<int> sizes;
  for (size_t s = 0; s < plan.first_block.size(); ++s) {
    sizes.push_back((s + 1 < plan.first_block.size() ? plan.first_block[s + 1] : blocks) -
                    plan.first_block[s]);
  }
  return sizes;
}

TEST(Plan, StatisticsAndDirectionFollowTheMethod) {
  const auto plan = [&](const char* method, Objective objective, OptionMap options) {
    PlanInputs inputs = Inputs(Geometry("tiny-llama"));
    inputs.recipe.method = method;
    inputs.recipe.objective = objective;
    inputs.recipe.options = std::move(options);
    return *MakePlan(inputs);
  };
  EXPECT_THAT(plan("rtn", Objective::kGuided, {}).statistics, IsEmpty());
  EXPECT_FALSE(plan("rtn", Objective::kGuided, {}).needs_backward);
  EXPECT_THAT(plan("lnq", Objective::kGuided, {}).statistics, ElementsAre("fisher_blocks"));
  EXPECT_TRUE(plan("lnq", Objective::kGuided, {}).needs_backward);
  EXPECT_THAT(plan("lnq", Objective::kPlain, {}).statistics, ElementsAre("gram"));
  EXPECT_FALSE(plan("lnq", Objective::kPlain, {}).needs_backward);
  // Gradients once taken, the loss increase is priced.
  EXPECT_THAT(plan("squeezellm", Objective::kGuided, {}).statistics,
              ElementsAre("fisher_blocks", "fisher_diagonal"));
  EXPECT_THAT(plan("lnq", Objective::kPlain, {{"solver", "published"}}).statistics,
              ElementsAre("fisher_blocks", "fisher_diagonal", "gram"));
}

TEST(Plan, StagesCoverTheBlocksInOrder) {
  for (int stages = 1; stages <= 32; ++stages) {
    PlanInputs inputs = Inputs(Large());
    inputs.stages = stages;
    const auto plan = MakePlan(inputs);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->first_block.size(), static_cast<size_t>(stages));
    EXPECT_EQ(plan->first_block.front(), 0);
    int sum = 0;
    for (const int size : Sizes(*plan, 32)) {
      EXPECT_GE(size, 1);
      sum += size;
    }
    EXPECT_EQ(sum, 32);
  }
}

TEST(Plan, LastStageTakesMoreWhereOthersRunForwardTwice) {
  PlanInputs inputs = Inputs(Large());
  inputs.stages = 2;
  const std::vector<int> backward = Sizes(*MakePlan(inputs), 32);
  EXPECT_GT(backward[1], backward[0]);
  // Without gradients no head is computed and the cut is even.
  inputs.recipe.objective = Objective::kPlain;
  EXPECT_THAT(Sizes(*MakePlan(inputs), 32), ElementsAre(16, 16));
  // A vocabulary that dwarfs the blocks takes blocks from the last stage.
  inputs.recipe.objective = Objective::kGuided;
  inputs.geometry.vocab_size = 1 << 24;
  EXPECT_LT(Sizes(*MakePlan(inputs), 32)[1], backward[1]);
}

TEST(Plan, ChosenStagesFollowWorkersAndMemory) {
  PlanInputs inputs = Inputs(Geometry("docs-llama-6m"));
  for (const auto& [workers, stages] : {std::pair{1, 1u}, {2, 2u}, {3, 3u}, {99, 6u}, {0, 1u}}) {
    inputs.workers = workers;
    EXPECT_EQ(MakePlan(inputs)->first_block.size(), stages) << workers;
  }
  PlanInputs large = Inputs(Large());
  large.length = 2048;
  const Plan whole = *MakePlan(large);
  EXPECT_EQ(whole.first_block.size(), 1u);
  // Packed triangles of g = 4 over 7B: 53 GiB (reference: 4 · g · Σ d² / 2).
  EXPECT_NEAR(static_cast<double>(whole.statistics_bytes) / (1 << 30), 53, 1);
  large.worker_memory_bytes = int64_t{24} << 30;
  const Plan cut = *MakePlan(large);
  EXPECT_GT(cut.first_block.size(), 3u);
  EXPECT_LE(cut.worker_memory_bytes, large.worker_memory_bytes);
  EXPECT_LT(cut.statistics_bytes, whole.statistics_bytes);
  EXPECT_EQ(cut.first_block, MakePlan(large)->first_block);
  // Fewer stages by one would not have fitted.
  large.stages = static_cast<int>(cut.first_block.size()) - 1;
  large.worker_memory_bytes = cut.worker_memory_bytes;
  const auto fewer = MakePlan(large);
  EXPECT_TRUE(!fewer.ok() || fewer->recompute);
}

TEST(Plan, RecomputesWhereOnlyTheGraphIsTooLarge) {
  PlanInputs inputs = Inputs(Large());
  inputs.stages = 2;
  inputs.length = 4096;
  inputs.chunk_sequences = 8;
  inputs.recipe.groups = 1;
  const Plan free = *MakePlan(inputs);
  EXPECT_FALSE(free.recompute);
  inputs.worker_memory_bytes = free.worker_memory_bytes - 1;
  const auto tight = MakePlan(inputs);
  ASSERT_TRUE(tight.ok()) << tight.status();
  EXPECT_TRUE(tight->recompute);
  EXPECT_LT(tight->activations_bytes, free.activations_bytes / 2);
  EXPECT_GT(tight->pass_flop, free.pass_flop);
}

TEST(Plan, SaysWhatDoesNotFit) {
  PlanInputs inputs = Inputs(Large());
  inputs.worker_memory_bytes = int64_t{1} << 30;
  const absl::Status status = MakePlan(inputs).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("1073741824"), HasSubstr("32 stages")));
  inputs.stages = 1;
  EXPECT_THAT(std::string(MakePlan(inputs).status().message()), HasSubstr("the stages asked for"));
}

TEST(Plan, RefusesWhatCannotBe) {
  const auto refused = [](auto&& spoil) {
    PlanInputs inputs = Inputs(Geometry("tiny-llama"));
    spoil(inputs);
    const auto plan = MakePlan(inputs);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(plan.status().message());
  };
  EXPECT_THAT(refused([](auto& i) { i.recipe.bits = 0; }),
              AllOf(HasSubstr("bits"), HasSubstr("1..8"), HasSubstr(": 0")));
  EXPECT_THAT(refused([](auto& i) { i.recipe.bits = 9; }), HasSubstr(": 9"));
  EXPECT_THAT(refused([](auto& i) { i.recipe.groups = 0; }), HasSubstr("groups"));
  EXPECT_THAT(refused([](auto& i) { i.recipe.groups = 33; }),
              AllOf(HasSubstr("1..32"), HasSubstr("33")));
  EXPECT_THAT(refused([](auto& i) { i.stages = 4; }),
              AllOf(HasSubstr("stages"), HasSubstr("0..3")));
  EXPECT_THAT(refused([](auto& i) { i.stages = -1; }), HasSubstr("stages"));
  EXPECT_THAT(refused([](auto& i) { i.sequences = 0; }), HasSubstr("sequences"));
  EXPECT_THAT(refused([](auto& i) { i.length = 1; }), HasSubstr("length"));
  EXPECT_THAT(refused([](auto& i) { i.chunk_sequences = 0; }), HasSubstr("chunk_sequences"));
  EXPECT_THAT(refused([](auto& i) { i.recipe.method = "lnk"; }), HasSubstr("did you mean lnq?"));
  EXPECT_THAT(refused([](auto& i) {
                i.recipe.options = {{"cycle", "3"}};
              }),
              HasSubstr("did you mean cycles?"));
}

TEST(Plan, LargestGeometryDoesNotOverflow) {
  ModelGeometry g = Large();
  g.hidden_size = g.intermediate_size = 1 << 20;
  g.heads = g.kv_heads = 256;
  g.head_dim = 4096;
  g.blocks = 4096;
  g.vocab_size = 1 << 24;
  PlanInputs inputs = Inputs(g);
  inputs.recipe.groups = 1 << 20;
  inputs.sequences = inputs.chunk_sequences = 1 << 20;
  inputs.length = 1 << 20;
  const auto plan = MakePlan(inputs);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->statistics_bytes, int64_t{1} << 62);
  EXPECT_GT(plan->worker_memory_bytes, 0);
  EXPECT_TRUE(std::isfinite(plan->solve_flop));
}

TEST(Plan, ChunksRoundUp) {
  PlanInputs inputs = Inputs(Geometry("tiny-llama"));
  inputs.sequences = 9;
  EXPECT_EQ(MakePlan(inputs)->chunks, 3);
}

TEST(Plan, FlopOfTheReference) {
  // reference: 7B over 1024 × 4096 tokens, forward 5.99e16 with head, input gradients as much
  // again; fisher_blocks g = 1 2.98e16 packed.
  PlanInputs inputs = Inputs(Large());
  inputs.sequences = 1024;
  inputs.length = 4096;
  inputs.recipe.groups = 1;
  const Plan plan = *MakePlan(inputs);
  EXPECT_NEAR(plan.pass_flop / 1.27e17, 1, 0.1);
  EXPECT_NEAR(plan.statistics_flop / 2.98e16, 1, 0.02);
}

}  // namespace
}  // namespace gradq
