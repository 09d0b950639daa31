// What a stage computes has the same bits for any cut into stages, with and without recompute, and
// on any number of threads.

#include "lib/transformer/stage.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/format/checkpoint.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

std::unique_ptr<Checkpoint> Open(const std::string& path) {
  auto folder = OpenLocalFolder(path);
  GRADQ_CHECK(folder.ok());
  auto checkpoint = Checkpoint::Open(*std::move(folder));
  GRADQ_CHECK(checkpoint.ok());
  return *std::move(checkpoint);
}

using Observed = std::map<std::pair<int, LinearKind>, std::pair<at::Tensor, at::Tensor>>;

struct Pass {
  double loss_sum = 0;
  Observed observed;
  std::vector<std::pair<int, LinearKind>> order;
};

// The whole model cut at `first_blocks`: forward through all stages, then backward from the last to
// the first.
Pass RunStages(const Checkpoint& checkpoint, const at::Tensor& tokens,
               std::vector<int> first_blocks, bool recompute) {
  const ModelGeometry& geometry = checkpoint.geometry();
  first_blocks.push_back(static_cast<int>(geometry.blocks));
  std::vector<std::unique_ptr<Stage>> stages;
  std::vector<at::Tensor> inputs = {tokens};
  for (size_t s = 0; s + 1 < first_blocks.size(); ++s) {
    auto stage = Stage::Load(
        checkpoint, geometry,
        {.first_block = first_blocks[s], .end_block = first_blocks[s + 1], .recompute = recompute});
    GRADQ_CHECK(stage.ok());
    stages.push_back(*std::move(stage));
    inputs.push_back(stages.back()->Forward(inputs.back()));
  }
  Pass pass;
  at::Tensor gradient;
  for (size_t s = stages.size(); s-- > 0;) {
    const Stage::Gradients result = stages[s]->ForwardBackward(
        inputs[s], gradient, tokens, stages[s]->linears(), [&](const Observation& o) {
          pass.observed[{o.block, o.kind}] = {o.x, o.dz};
          pass.order.push_back({o.block, o.kind});
        });
    if (stages[s]->is_last()) pass.loss_sum = result.loss_sum;
    gradient = result.dx;
  }
  EXPECT_FALSE(gradient.defined());
  return pass;
}

void ExpectSame(const Pass& actual, const Pass& expected, const std::string& what) {
  EXPECT_EQ(actual.loss_sum, expected.loss_sum) << what;
  EXPECT_EQ(actual.order, expected.order) << what;
  for (const auto& [linear, tensors] : expected.observed) {
    const auto& found = actual.observed.at(linear);
    EXPECT_TRUE(BitEqual(found.first, tensors.first))
        << what << ", x of " << LinearName(linear.first, linear.second);
    EXPECT_TRUE(BitEqual(found.second, tensors.second))
        << what << ", dz of " << LinearName(linear.first, linear.second);
  }
}

class StageTest : public testing::TestWithParam<std::string> {
 protected:
  StageTest() : checkpoint_(Open(StrCat(GRADQ_GOLDEN, "/transformer/", GetParam()))) {
    tokens_ = GoldenFile(StrCat(GRADQ_GOLDEN, "/transformer/", GetParam(), "/golden.safetensors"))
                  .Get("tokens");
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  at::Tensor tokens_;
};

TEST_P(StageTest, BitsDoNotDependOnStagesOrRecompute) {
  const Pass whole = RunStages(*checkpoint_, tokens_, {0}, false);
  EXPECT_EQ(whole.observed.size(), 2u * kLinearsPerBlock);
  ExpectSame(RunStages(*checkpoint_, tokens_, {0}, true), whole, "recompute");
  ExpectSame(RunStages(*checkpoint_, tokens_, {0, 1}, false), whole, "two stages");
  ExpectSame(RunStages(*checkpoint_, tokens_, {0, 1}, true), whole, "two stages, recompute");
}

INSTANTIATE_TEST_SUITE_P(Families, StageTest,
                         testing::Values("llama", "llama3", "mistral", "qwen2", "qwen3"));

// Sequences do not see each other: a sequence alone gives the rows it gives in a chunk (up to the
// order of products).
TEST_P(StageTest, GradientsAreOfTheMeanLossOfEachSequence) {
  const Pass whole = RunStages(*checkpoint_, tokens_, {0}, false);
  const Pass second = RunStages(*checkpoint_, tokens_.slice(0, 1, 2), {0}, false);
  const int64_t length = tokens_.size(1);
  for (const auto& [linear, tensors] : second.observed) {
    const at::Tensor rows = whole.observed.at(linear).second.slice(0, length, 2 * length);
    EXPECT_LT(ScaledDistance(tensors.second, rows), 1e-5)
        << LinearName(linear.first, linear.second);
  }
}

TEST_P(StageTest, OnlyWantedLinearsAreObserved) {
  auto stage =
      Stage::Load(*checkpoint_, checkpoint_->geometry(), {.first_block = 0, .end_block = 2});
  ASSERT_TRUE(stage.ok());
  const LinearSet wanted = {{1, LinearKind::kDown}, {1, LinearKind::kV}};
  std::vector<std::pair<int, LinearKind>> seen;
  const Pass whole = RunStages(*checkpoint_, tokens_, {0}, false);
  (*stage)->ForwardBackward(tokens_, {}, tokens_, wanted, [&](const Observation& o) {
    seen.push_back({o.block, o.kind});
    EXPECT_TRUE(BitEqual(o.dz, whole.observed.at({o.block, o.kind}).second));
    EXPECT_EQ(o.sequences, tokens_.size(0));
  });
  EXPECT_EQ(seen,
            (std::vector<std::pair<int, LinearKind>>{{1, LinearKind::kDown}, {1, LinearKind::kV}}));
  seen.clear();
  (*stage)->Forward(tokens_, {{0, LinearKind::kO}}, [&](const Observation& o) {
    seen.push_back({o.block, o.kind});
    EXPECT_FALSE(o.dz.defined());
    EXPECT_TRUE(BitEqual(o.x, whole.observed.at({o.block, o.kind}).first));
  });
  EXPECT_EQ(seen, (std::vector<std::pair<int, LinearKind>>{{0, LinearKind::kO}}));
}

// The form of CUDA devices: products in bf16, residual stream and dz in fp32.
TEST_P(StageTest, Bfloat16ComputesCloseToFloat32) {
  const Pass whole = RunStages(*checkpoint_, tokens_, {0}, false);
  auto stage = Stage::Load(*checkpoint_, checkpoint_->geometry(),
                           {.first_block = 1, .end_block = 2, .compute_dtype = at::kBFloat16});
  ASSERT_TRUE(stage.ok());
  auto before =
      Stage::Load(*checkpoint_, checkpoint_->geometry(), {.first_block = 0, .end_block = 1});
  ASSERT_TRUE(before.ok());
  int seen = 0;
  const Stage::Gradients result = (*stage)->ForwardBackward(
      (*before)->Forward(tokens_), {}, tokens_, (*stage)->linears(), [&](const Observation& o) {
        const auto& [x, dz] = whole.observed.at({o.block, o.kind});
        EXPECT_EQ(o.x.scalar_type(), at::kFloat);
        EXPECT_EQ(o.dz.scalar_type(), at::kFloat);
        EXPECT_LT(ScaledDistance(o.x, x), 0.05) << LinearName(o.block, o.kind);
        EXPECT_LT(ScaledDistance(o.dz, dz), 0.1) << LinearName(o.block, o.kind);
        EXPECT_FALSE(BitEqual(o.dz, dz));
        ++seen;
      });
  EXPECT_EQ(seen, kLinearsPerBlock);
  EXPECT_EQ(result.dx.scalar_type(), at::kFloat);
  EXPECT_NEAR(result.loss_sum, whole.loss_sum, 0.02 * whole.loss_sum);
}

class FixtureStageTest : public testing::TestWithParam<std::pair<std::string, int64_t>> {};

TEST_P(FixtureStageTest, BitsDoNotDependOnThreads) {
  const auto& [name, length] = GetParam();
  const auto checkpoint = Open(StrCat(GRADQ_FIXTURES, "/", name));
  const at::Tensor seed = Pseudorandom({4, length}, 5)
                              .add(1)
                              .mul(0.5 * static_cast<double>(checkpoint->geometry().vocab_size));
  const at::Tensor tokens = seed.to(at::kInt);
  at::set_num_threads(1);
  const Pass one = RunStages(*checkpoint, tokens, {0}, false);
  for (int threads = 2; threads <= 4; ++threads) {
    at::set_num_threads(threads);
    ExpectSame(RunStages(*checkpoint, tokens, {0, 1}, false), one, StrCat(threads, " threads"));
  }
  at::set_num_threads(2);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, FixtureStageTest,
                         testing::Values(std::pair<std::string, int64_t>("tiny-llama", 256),
                                         std::pair<std::string, int64_t>("docs-llama-6m", 512)));

TEST(StageLoadTest, RefusesStagesThatAreNotThere) {
  const auto checkpoint = Open(StrCat(GRADQ_GOLDEN, "/transformer/llama"));
  for (const auto& [first, end] : std::vector<std::pair<int, int>>{{0, 3}, {-1, 1}, {1, 1}}) {
    const auto stage =
        Stage::Load(*checkpoint, checkpoint->geometry(), {.first_block = first, .end_block = end});
    EXPECT_EQ(stage.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace gradq
