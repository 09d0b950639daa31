// weight_gradient against loops in fp64 and against the autograd of Hugging Face transformers:
// nodes with their coefficients, the first sequences only, absolute values.

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/statistics.h"
#include "lib/format/checkpoint.h"
#include "lib/kernels/token_products.h"
#include "lib/statistics/statistic_internal.h"
#include "lib/transformer/numerics.h"
#include "lib/transformer/stage.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

constexpr int64_t kOut = 37, kIn = 52, kLength = 19;

struct Observed {
  at::Tensor x, dz;
  int64_t sequences;
};

Observed Observe(int64_t sequences, uint32_t seed) {
  return {Pseudorandom({sequences * kLength, kIn}, seed),
          Pseudorandom({sequences * kLength, kOut}, seed + 1).mul(1e-3), sequences};
}

// Two nodes with coefficients 0.25 and 2, each of chunks of 3 and 2 sequences.
constexpr double kCoefficients[] = {0.25, 2};
std::vector<Observed> Chunks(int node) {
  const auto seed = static_cast<uint32_t>(10 * node);
  return {Observe(3, seed + 1), Observe(2, seed + 5)};
}

at::Tensor Accumulated(Statistic& statistic) {
  for (int node = 0; node < 2; ++node) {
    statistic.BeginNode(kCoefficients[node]);
    for (const Observed& chunk : Chunks(node)) {
      statistic.Accumulate(chunk.x, chunk.dz, chunk.sequences);
    }
  }
  return statistic.Finish().at(0).value;
}

// `first`: how many sequences of each node count.
at::Tensor Oracle(int64_t first, bool absolute) {
  at::Tensor sum = ZeroSums({kOut, kIn}, at::kCPU);
  for (int node = 0; node < 2; ++node) {
    int64_t left = first;
    for (const Observed& chunk : Chunks(node)) {
      kernels::reference::AccumulateGradients(
          chunk.x.const_data_ptr<float>(), chunk.dz.const_data_ptr<float>(),
          std::min(left, chunk.sequences), kLength, kIn, kOut, absolute,
          static_cast<float>(kCoefficients[node]), sum.mutable_data_ptr<float>());
      left -= std::min(left, chunk.sequences);
    }
  }
  return sum;
}

struct Form {
  const char* name;
  int64_t first;  // gradient_sequences
  bool absolute;
};
constexpr Form kForms[] = {
    {"sum", 0, false}, {"first", 4, false}, {"one", 1, false}, {"absolute", 0, true}};

StatisticSetup SetupOf(const Form& form, ThreadPool* pool) {
  StatisticSetup setup = {.out_features = kOut, .in_features = kIn, .pool = pool};
  setup.gradient_sequences = form.first;
  setup.gradient_absolute = form.absolute;
  return setup;
}

TEST(WeightGradient, IsTheSumOverNodesAndSequences) {
  for (const Form& form : kForms) {
    const at::Tensor expected = Oracle(form.first == 0 ? 5 : form.first, form.absolute);
    at::Tensor one;
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadPool pool(threads);
      auto statistic = MakeStatistic(kWeightGradient, SetupOf(form, &pool));
      ASSERT_TRUE(statistic.ok());
      const at::Tensor actual = Accumulated(**statistic);
      EXPECT_LT(ScaledDistance(actual, expected), 3e-6) << form.name;
      if (threads == 1) one = actual;
      EXPECT_TRUE(BitEqual(actual, one)) << form.name << ", threads " << threads;
    }
    const auto device = MakeWeightGradientOnDevice(SetupOf(form, nullptr));
    EXPECT_LT(ScaledDistance(Accumulated(*device), expected), 3e-6) << form.name;
  }
}

TEST(WeightGradient, IsTheWeightGradientOfTransformers) {
  const GoldenFile golden(StrCat(GRADQ_GOLDEN, "/statistics/weight_gradient.safetensors"));
  const auto checkpoint = Checkpoint::Open(*OpenLocalFolder(StrCat(GRADQ_FIXTURES, "/tiny-llama")));
  ASSERT_TRUE(checkpoint.ok());
  const ModelGeometry& geometry = (*checkpoint)->geometry();
  auto stage = Stage::Load(**checkpoint, geometry,
                           {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)});
  ASSERT_TRUE(stage.ok());
  ThreadPool pool(2);
  constexpr Form kGolden[] = {{"sum", 0, false}, {"first", 3, false}, {"absolute", 0, true}};
  std::map<std::pair<std::string, std::string>, std::unique_ptr<Statistic>> statistics;
  for (const LinearShape& linear : LinearsOf(geometry)) {
    for (const Form& form : kGolden) {
      StatisticSetup setup = SetupOf(form, &pool);
      setup.out_features = linear.out_features;
      setup.in_features = linear.in_features;
      statistics[{linear.name, form.name}] = *MakeStatistic(kWeightGradient, setup);
    }
  }
  const at::Tensor tokens = golden.Get("tokens");
  for (int64_t n = 0; n < tokens.size(0); n += 2) {
    const at::Tensor chunk = tokens.slice(0, n, n + 2);
    (*stage)->ForwardBackward(chunk, {}, chunk, (*stage)->linears(), [&](const Observation& o) {
      for (const Form& form : kGolden) {
        statistics[{LinearName(o.block, o.kind), form.name}]->Accumulate(o.x, o.dz, o.sequences);
      }
    });
  }
  for (auto& [key, statistic] : statistics) {
    const std::string name = StrCat(key.first, "/", key.second);
    EXPECT_LT(ScaledDistance(statistic->Finish()[0].value.reshape({-1}).slice(0, 0, {}, 61),
                             golden.Get(name)),
              1e-4)
        << name;
  }
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
