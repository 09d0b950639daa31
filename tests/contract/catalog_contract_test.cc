// The tables of lib/catalog against what is built on them: each statistic makes what its row says,
// and what a plan accumulates for a method is all that its solve, its shard and its price need.
// (That every quantizer row is bound once: tests/solvers.)

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/plan.h"
#include "lib/catalog/statistics.h"
#include "lib/solvers/quantizer.h"
#include "lib/statistics/statistic.h"
#include "tests/solvers/test_problem.h"

namespace gradq {
namespace {

constexpr int64_t kOut = 13, kIn = 10, kTokens = 48;
constexpr int kGroups = 3;

// Sums of one statistic over one observation of random tokens.
std::vector<StatisticTensor> Observe(std::string_view name, ThreadPool* pool) {
  auto statistic = MakeStatistic(name, kOut, kIn, kGroups, at::kCPU, pool);
  EXPECT_TRUE(statistic.ok()) << statistic.status();
  const at::Tensor x = MakeTensor(Pseudorandoms(kTokens * kIn, 1), kTokens, kIn);
  const at::Tensor dz = MakeTensor(Pseudorandoms(kTokens * kOut, 2), kTokens, kOut);
  (*statistic)->Accumulate(x, (*FindStatistic(name))->needs_gradient ? dz : at::Tensor(), 2);
  return (*statistic)->Finish();
}

TEST(StatisticTable, EveryRowMakesWhatItSays) {
  ThreadPool pool(2);
  for (const StatisticRow& row : Statistics()) {
    int64_t bytes = 0;
    for (const StatisticTensor& tensor : Observe(row.name, &pool)) {
      EXPECT_TRUE(tensor.name == row.name || tensor.name.starts_with(StrCat(row.name, "/")))
          << tensor.name;
      EXPECT_EQ(tensor.value.scalar_type(), at::kFloat);
      bytes += tensor.value.numel() * 4;
    }
    EXPECT_EQ(static_cast<double>(bytes), row.finished_bytes(kOut, kIn, kGroups)) << row.name;
  }
  EXPECT_FALSE(MakeStatistic("fisher", kOut, kIn, kGroups, at::kCPU, &pool).ok());
}

// A model whose only use here is to be planned with.
PlanInputs InputsFor(const QuantizerRow& row, Objective objective, int bits) {
  PlanInputs inputs;
  inputs.geometry = *ParseGeometry(
      R"({"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 64})");
  inputs.recipe.method = row.name;
  inputs.recipe.objective = objective;
  inputs.recipe.bits = bits;
  return inputs;
}

TEST(QuantizerTable, WhatAPlanAccumulatesIsEnoughToSolvePriceAndStore) {
  ThreadPool pool(2);
  for (const QuantizerRow& row : Quantizers()) {
    for (const Objective objective : {Objective::kGuided, Objective::kPlain}) {
      for (int bits = row.min_bits; bits <= row.max_bits; ++bits) {
        SCOPED_TRACE(StrCat(row.name, " ", ObjectiveName(objective), " ", bits, " bits"));
        const auto plan = MakePlan(InputsFor(row, objective, bits));
        ASSERT_TRUE(plan.ok()) << plan.status();
        std::map<std::string, at::Tensor> tensors;
        for (const std::string& statistic : plan->statistics) {
          for (StatisticTensor& tensor : Observe(statistic, &pool))
            tensors[tensor.name] = std::move(tensor.value);
        }

        LayerProblem problem;
        problem.name = "model.layers.0.mlp.up_proj";
        problem.weight = MakeTensor(Pseudorandoms(kOut * kIn, 3), kOut, kIn);
        problem.groups = {.rows = kOut, .groups = kGroups};
        problem.bits = bits;
        problem.objective = objective;
        problem.options = *ResolveOptions(row.name, row.options, {});
        problem.loss_price = 1e-9;
        const std::vector<std::string_view> accumulated(plan->statistics.begin(),
                                                        plan->statistics.end());
        ASSERT_TRUE(AttachStatistics(tensors, accumulated, &problem).ok());
        const auto linear = SolveLayer(row.name, problem, {.pool = &pool, .cancelled = {}});
        ASSERT_TRUE(linear.ok()) << linear.status();

        EXPECT_EQ(linear->encoding, row.encoding);
        EXPECT_EQ(linear->record.method, row.name);
        EXPECT_EQ(linear->record.predicted_loss_increase.has_value(), plan->needs_backward);
        const std::string shard = SerializeShard(*linear);
        const auto read = ParseShard(shard);
        ASSERT_TRUE(read.ok()) << read.status();
        EXPECT_EQ(SerializeShard(*read), shard);
      }
    }
  }
}

TEST(OutlierPolicyTable, HoldsTheDefaultOfARecipe) { EXPECT_TRUE(FindOutlierPolicy("none").ok()); }

}  // namespace
}  // namespace gradq
