// Every statistic against its definition in fp64, against Hugging Face transformers, and against
// itself on other numbers of threads.

#include "lib/statistics/statistic.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hwy/targets.h"
#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/groups.h"
#include "lib/catalog/statistics.h"
#include "lib/format/checkpoint.h"
#include "lib/kernels/simd_target.h"
#include "lib/kernels/token_products.h"
#include "lib/kernels/triangle.h"
#include "lib/statistics/statistic_internal.h"
#include "lib/transformer/stage.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

struct Case {
  int64_t out, in, sequences, length;
  int groups;
};

std::vector<Case> Cases() {
  return {{.out = 1, .in = 1, .sequences = 1, .length = 1, .groups = 1},
          {.out = 5, .in = 3, .sequences = 2, .length = 7, .groups = 5},
          {.out = 37, .in = 52, .sequences = 3, .length = 19, .groups = 4},
          {.out = 64, .in = 176, .sequences = 2, .length = 130, .groups = 3},
          {.out = 176, .in = 64, .sequences = 1, .length = 517, .groups = 2},
          {.out = 30, .in = 97, .sequences = 4, .length = 70, .groups = 1}};
}

std::string CaseName(const Case& c) {
  return StrCat(c.out, " x ", c.in, ", ", c.sequences, " x ", c.length, " tokens, ", c.groups,
                " groups");
}

// Small gradients, as real ones are.
std::pair<at::Tensor, at::Tensor> Tokens(const Case& c, uint32_t seed) {
  return {Pseudorandom({c.sequences * c.length, c.in}, seed),
          Pseudorandom({c.sequences * c.length, c.out}, seed + 1).mul(1e-3)};
}

std::vector<int64_t> GroupBegin(const Case& c) {
  const GroupPartition partition{c.out, c.groups};
  std::vector<int64_t> begin;
  for (int k = 0; k <= c.groups; ++k) begin.push_back(k == c.groups ? c.out : partition.begin(k));
  return begin;
}

// Σ_t mean(x_t²) · (c·dz_t)(c·dz_t)ᵀ, element by element.
void AddOutputFisher(const at::Tensor& x, const at::Tensor& dz, float* packed) {
  const int64_t tokens = x.size(0), in = x.size(1), out = dz.size(1);
  const float* inputs = x.const_data_ptr<float>();
  const float* gradients = dz.const_data_ptr<float>();
  std::vector<double> mean(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < in; ++i)
      mean[t] += static_cast<double>(inputs[t * in + i]) * inputs[t * in + i];
    mean[t] /= static_cast<double>(in);
  }
  for (int64_t j = 0; j < out; ++j) {
    for (int64_t k = 0; k <= j; ++k) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t)
        sum += mean[t] * 1e6 * gradients[t * out + j] * gradients[t * out + k];
      packed[kernels::TriangleRow(j) + k] += static_cast<float>(sum);
    }
  }
}

// Two observations by definition.
std::vector<at::Tensor> Oracle(std::string_view name, const Case& c) {
  std::vector<at::Tensor> sums;
  if (name == kFisherDiagonal) {
    sums.push_back(ZeroSums({c.out, c.in}, at::kCPU));
  } else if (name == kOutputFisher) {
    sums.push_back(ZeroSums({kernels::TriangleSize(c.out)}, at::kCPU));
  } else {
    for (int k = 0; k < (name == kGram ? 1 : c.groups); ++k)
      sums.push_back(ZeroSums({kernels::TriangleSize(c.in)}, at::kCPU));
  }
  for (const uint32_t seed : {11u, 23u}) {
    auto [x, dz] = Tokens(c, seed);
    const float* inputs = x.const_data_ptr<float>();
    if (name == kOutputFisher) {
      AddOutputFisher(x, dz, sums[0].mutable_data_ptr<float>());
      continue;
    }
    if (name == kFisherDiagonal) {
      kernels::reference::AccumulateSquaredGradients(inputs, dz.const_data_ptr<float>(),
                                                     c.sequences, c.length, c.in, c.out,
                                                     sums[0].mutable_data_ptr<float>());
      continue;
    }
    std::vector<float*> packed;
    for (at::Tensor& sum : sums) packed.push_back(sum.mutable_data_ptr<float>());
    // A gram matrix is one Fisher block of which every gradient is 1.
    const at::Tensor ones = ZeroSums({x.size(0), 1}, at::kCPU).add(1);
    const std::vector<int64_t> all = {0, 1};
    kernels::reference::AccumulateFisherBlocks(
        inputs, (name == kGram ? ones : dz).const_data_ptr<float>(), x.size(0), c.in,
        name == kGram ? all : GroupBegin(c), name == kGram ? 1.0f : 1e3f, packed.data());
  }
  return sums;
}

std::vector<StatisticTensor> Accumulated(Statistic& statistic, const Case& c) {
  for (const uint32_t seed : {11u, 23u}) {
    auto [x, dz] = Tokens(c, seed);
    statistic.Accumulate(x, dz, c.sequences);
  }
  return statistic.Finish();
}

class StatisticTest : public testing::TestWithParam<std::string_view> {};

TEST_P(StatisticTest, MatchesItsDefinition) {
  ThreadPool pool(3);
  for (const Case& c : Cases()) {
    auto statistic = MakeStatistic(GetParam(), c.out, c.in, c.groups, at::kCPU, &pool);
    ASSERT_TRUE(statistic.ok());
    const std::vector<StatisticTensor> actual = Accumulated(**statistic, c);
    const std::vector<at::Tensor> expected = Oracle(GetParam(), c);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(actual[i].name,
                GetParam() == kFisherBlocks ? StrCat(GetParam(), "/", i) : std::string(GetParam()));
      EXPECT_EQ(actual[i].value.sizes(), expected[i].sizes());
      EXPECT_LT(ScaledDistance(actual[i].value, expected[i]), 3e-6)
          << CaseName(c) << ", " << actual[i].name;
    }
  }
}

// Every instruction set this processor and build have, not only the best.
TEST_P(StatisticTest, MatchesItsDefinitionOnEveryTarget) {
  ThreadPool pool(2);
  const int64_t supported = hwy::SupportedTargets();
  int targets = 0;
  for (int64_t left = supported & HWY_TARGETS; left != 0; left &= left - 1, ++targets) {
    hwy::SetSupportedTargetsForTest(left & -left);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (const Case& c : Cases()) {
      auto statistic = MakeStatistic(GetParam(), c.out, c.in, c.groups, at::kCPU, &pool);
      ASSERT_TRUE(statistic.ok());
      const std::vector<StatisticTensor> actual = Accumulated(**statistic, c);
      const std::vector<at::Tensor> expected = Oracle(GetParam(), c);
      for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_LT(ScaledDistance(actual[i].value, expected[i]), 3e-6)
            << kernels::SimdTargetName() << ", " << CaseName(c) << ", " << actual[i].name;
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(targets, 1);
}

TEST_P(StatisticTest, BitsDoNotDependOnThreads) {
  for (const Case& c : Cases()) {
    std::vector<StatisticTensor> one;
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      auto statistic = MakeStatistic(GetParam(), c.out, c.in, c.groups, at::kCPU, &pool);
      ASSERT_TRUE(statistic.ok());
      const std::vector<StatisticTensor> actual = Accumulated(**statistic, c);
      if (threads == 1) one = actual;
      for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_TRUE(BitEqual(actual[i].value, one[i].value))
            << CaseName(c) << ", threads " << threads;
      }
    }
  }
}

TEST_P(StatisticTest, FormOfOtherDevicesAgrees) {
  static const std::map<std::string_view, std::unique_ptr<Statistic> (*)(const StatisticSetup&)>
      kMake = {{kFisherBlocks, MakeFisherBlocksOnDevice},
               {kFisherDiagonal, MakeFisherDiagonalOnDevice},
               {kOutputFisher, MakeOutputFisherOnDevice},
               {kGram, MakeGramOnDevice}};
  for (const Case& c : Cases()) {
    const auto statistic = kMake.at(GetParam())({c.out, c.in, c.groups, at::kCPU, nullptr});
    const std::vector<StatisticTensor> actual = Accumulated(*statistic, c);
    const std::vector<at::Tensor> expected = Oracle(GetParam(), c);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_LT(ScaledDistance(actual[i].value, expected[i]), 3e-6)
          << CaseName(c) << ", " << actual[i].name;
    }
  }
}

TEST_P(StatisticTest, MatchesTransformersOnTinyLlama) {
  const GoldenFile golden(StrCat(GRADQ_GOLDEN, "/statistics/statistics.safetensors"));
  auto folder = OpenLocalFolder(StrCat(GRADQ_FIXTURES, "/tiny-llama"));
  ASSERT_TRUE(folder.ok());
  const auto checkpoint = Checkpoint::Open(*std::move(folder));
  ASSERT_TRUE(checkpoint.ok());
  const ModelGeometry& geometry = (*checkpoint)->geometry();
  auto stage = Stage::Load(**checkpoint, geometry,
                           {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)});
  ASSERT_TRUE(stage.ok());
  ThreadPool pool(2);
  std::map<std::string, std::unique_ptr<Statistic>> statistics;
  for (const LinearShape& linear : LinearsOf(geometry)) {
    auto statistic =
        MakeStatistic(GetParam(), linear.out_features, linear.in_features, 4, at::kCPU, &pool);
    ASSERT_TRUE(statistic.ok());
    statistics[linear.name] = *std::move(statistic);
  }
  const at::Tensor tokens = golden.Get("tokens");
  // Two chunks of two sequences.
  for (int64_t n = 0; n < tokens.size(0); n += 2) {
    const at::Tensor chunk = tokens.slice(0, n, n + 2);
    (*stage)->ForwardBackward(chunk, {}, chunk, (*stage)->linears(), [&](const Observation& o) {
      statistics[LinearName(o.block, o.kind)]->Accumulate(o.x, o.dz, o.sequences);
    });
  }
  for (auto& [linear, statistic] : statistics) {
    for (const StatisticTensor& tensor : statistic->Finish()) {
      const std::string name = StrCat(linear, "/", tensor.name);
      EXPECT_LT(ScaledDistance(tensor.value.reshape({-1}).slice(0, 0, {}, 61), golden.Get(name)),
                1e-4)
          << name;
      const double squares = golden.Get(name + "/squares").item<float>();
      EXPECT_NEAR(tensor.value.to(at::kDouble).square().sum().item<double>(), squares,
                  1e-4 * squares)
          << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, StatisticTest,
                         testing::Values(kFisherBlocks, kFisherDiagonal, kOutputFisher, kGram),
                         [](const auto& info) { return std::string(info.param); });

TEST(StatisticTableTest, CatalogAndImplementationsAgree) {
  ASSERT_EQ(StatisticBindings().size(), Statistics().size());
  ThreadPool pool(1);
  for (const StatisticRow& row : Statistics()) {
    int bindings = 0;
    for (const StatisticBinding& binding : StatisticBindings())
      bindings += binding.name == row.name;
    EXPECT_EQ(bindings, 1) << row.name;
    // Finished bytes are what the plan counts with; a row without need of gradients works without.
    auto statistic = MakeStatistic(row.name, 12, 7, 3, at::kCPU, &pool);
    ASSERT_TRUE(statistic.ok()) << row.name;
    (*statistic)
        ->Accumulate(Pseudorandom({10, 7}, 1),
                     row.needs_gradient ? Pseudorandom({10, 12}, 2) : at::Tensor(), 2);
    int64_t bytes = 0;
    for (const StatisticTensor& tensor : (*statistic)->Finish())
      bytes += static_cast<int64_t>(tensor.value.nbytes());
    EXPECT_EQ(bytes, row.finished_bytes(12, 7, 3)) << row.name;
    EXPECT_LE(bytes, row.accumulating_bytes(12, 7, 3)) << row.name;
  }
}

TEST(StatisticTableTest, RefusesWhatItCannotMake) {
  ThreadPool pool(1);
  EXPECT_EQ(MakeStatistic("fisher_block", 4, 4, 1, at::kCPU, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeStatistic(kFisherBlocks, 4, 4, 5, at::kCPU, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeStatistic(kFisherBlocks, 4, 4, 0, at::kCPU, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TriangleTest, FoldAndUnfoldAreInverse) {
  const at::Tensor half = Pseudorandom({7, 7}, 3);
  const at::Tensor full = half.add(half.t()).contiguous();
  const at::Tensor packed = PackTriangle(full);
  std::vector<float> unfolded(49);
  kernels::UnfoldTriangle(packed.const_data_ptr<float>(), 7, unfolded.data());
  EXPECT_EQ(std::memcmp(unfolded.data(), full.const_data_ptr<float>(), full.nbytes()), 0);
  EXPECT_EQ(packed.const_data_ptr<float>()[kernels::TriangleRow(5) + 2],
            full.const_data_ptr<float>()[5 * 7 + 2]);
}

}  // namespace
}  // namespace gradq
