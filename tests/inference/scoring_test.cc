// Perplexities of the fixtures against the yardstick, and comparisons of models.

#include "lib/inference/scoring.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/tokenizer/tokenizer.h"
#include "tests/inference/quantized_folder.h"

namespace gradq {
namespace {

std::unique_ptr<Model> LoadOrDie(const std::string& path) {
  auto model = Model::Load(*OpenFolderOrDie(path), {});
  EXPECT_TRUE(model.ok()) << model.status();
  GRADQ_CHECK(model.ok());
  return *std::move(model);
}

std::vector<int32_t> Windows(const std::string& path, int64_t length, int64_t count) {
  const auto tokenizer = Tokenizer::Open(*ReadFile(path + "/tokenizer.json"));
  GRADQ_CHECK(tokenizer.ok());
  const auto ids = (*tokenizer)->Encode(*ReadFile(path + "/validation.txt"));
  GRADQ_CHECK(ids.ok());
  return *CutWindows(*ids, length, count, (*tokenizer)->vocab_size());
}

struct Yardstick {
  std::string model;
  int64_t length;
  double perplexity;
};

class DensePerplexityTest : public testing::TestWithParam<Yardstick> {};

TEST_P(DensePerplexityTest, EqualsTransformers) {
  const std::string path = StrCat(GRADQ_FIXTURES, "/", GetParam().model);
  const auto model = LoadOrDie(path);
  const auto score =
      ScoreWindows(*model, Windows(path, GetParam().length, 96), GetParam().length, {});
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_NEAR(score->perplexity, GetParam().perplexity, 5e-5);
  EXPECT_EQ(score->tokens, 96 * (GetParam().length - 1));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, DensePerplexityTest,
                         testing::Values(Yardstick{"docs-llama-6m", 512, 14.587398},
                                         Yardstick{"tiny-llama", 256, 12.686218}),
                         [](const auto& info) {
                           return info.param.model == "tiny-llama" ? "TinyLlama" : "DocsLlama6m";
                         });

TEST(CompareTest, ModelWithItself) {
  const std::string path = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  const auto model = LoadOrDie(path);
  const std::vector<int32_t> windows = Windows(path, 64, 5);
  const auto score = ScoreWindows(*model, windows, 64, {});
  const auto same = CompareWindows(*model, *model, windows, 64, nullptr, {});
  ASSERT_TRUE(score.ok() && same.ok());
  EXPECT_EQ(same->kl, 0);
  EXPECT_EQ(same->top1_agreement, 1);
  EXPECT_EQ(same->perplexity, score->perplexity);
  EXPECT_EQ(same->reference_perplexity, score->perplexity);
  EXPECT_EQ(same->tokens, 5 * 63);
}

TEST(CompareTest, CoarseModelIsFurtherAway) {
  const std::string path = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  const TestFolder folder;
  WriteQuantizedFolder(path, {.bits = 3}, folder.path() + "/three");
  WriteQuantizedFolder(path, {.bits = 6}, folder.path() + "/six");
  const auto reference = LoadOrDie(path);
  const std::vector<int32_t> windows = Windows(path, 128, 6);
  ThreadPool pool(2);
  double kl[2] = {}, agreement[2] = {}, perplexity[2] = {};
  int i = 0;
  for (const char* name : {"/six", "/three"}) {
    const auto model = LoadOrDie(folder.path() + name);
    const auto result = CompareWindows(*model, *reference, windows, 128, &pool, {});
    ASSERT_TRUE(result.ok()) << result.status();
    const auto alone = CompareWindows(*model, *reference, windows, 128, nullptr, {});
    EXPECT_EQ(alone->kl, result->kl);
    kl[i] = result->kl;
    agreement[i] = result->top1_agreement;
    perplexity[i++] = result->perplexity;
    EXPECT_NEAR(result->reference_perplexity,
                ScoreWindows(*reference, windows, 128, {})->perplexity, 1e-9);
  }
  EXPECT_GT(kl[0], 0);
  EXPECT_LT(kl[0], 0.1);
  EXPECT_GT(kl[1], 3 * kl[0]);
  EXPECT_LT(agreement[1], agreement[0]);
  EXPECT_GT(perplexity[1], perplexity[0]);
}

// The sparse part reaches the score: what is kept apart brings the model closer to the original.
TEST(ScoreTest, OutliersCount) {
  const std::string path = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  const TestFolder folder;
  WriteQuantizedFolder(path, {.bits = 2}, folder.path() + "/without");
  WriteQuantizedFolder(path, {.bits = 2, .outliers = true}, folder.path() + "/with");
  const std::vector<int32_t> windows = Windows(path, 128, 4);
  const auto reference = LoadOrDie(path);
  double kl[2] = {};
  for (const bool with : {false, true}) {
    const auto model = LoadOrDie(folder.path() + (with ? "/with" : "/without"));
    kl[with] = CompareWindows(*model, *reference, windows, 128, nullptr, {})->kl;
  }
  EXPECT_LT(kl[1], kl[0]);
}

TEST(ScoreTest, LimitsOfMemoryDoNotChangeResults) {
  const std::string path = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  const TestFolder folder;
  WriteQuantizedFolder(path, {.bits = 3}, folder.path() + "/three");
  const auto model = LoadOrDie(folder.path() + "/three");
  const auto reference = LoadOrDie(path);
  const std::vector<int32_t> windows = Windows(path, 50, 7);
  const auto expected = CompareWindows(*model, *reference, windows, 50, nullptr, {});
  ASSERT_TRUE(expected.ok());
  // One window at a time; one row, a few rows, rows that do not divide a window.
  for (const ScoringLimits& limits : {ScoringLimits{1, 1}, ScoringLimits{120, 512 * 4 * 7},
                                      ScoringLimits{1 << 20, 512 * 4 * 30}}) {
    const auto score = ScoreWindows(*model, windows, 50, {}, limits);
    const auto result = CompareWindows(*model, *reference, windows, 50, nullptr, {}, limits);
    ASSERT_TRUE(score.ok() && result.ok());
    EXPECT_EQ(score->tokens, 7 * 49);
    EXPECT_EQ(result->tokens, 7 * 49);
    // Products of other shapes round differently.
    EXPECT_NEAR(score->perplexity, expected->perplexity, 1e-5 * expected->perplexity);
    EXPECT_NEAR(result->perplexity, expected->perplexity, 1e-5 * expected->perplexity);
    EXPECT_NEAR(result->reference_perplexity, expected->reference_perplexity,
                1e-5 * expected->reference_perplexity);
    EXPECT_NEAR(result->kl, expected->kl, 1e-5);
    EXPECT_NEAR(result->top1_agreement, expected->top1_agreement, 0.01);
  }
}

TEST(ScoreTest, WrongUse) {
  const auto model = LoadOrDie(StrCat(GRADQ_FIXTURES, "/tiny-llama"));
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  EXPECT_EQ(ScoreWindows(*model, tokens, 1, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ScoreWindows(*model, tokens, 3, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ScoreWindows(*model, {}, 2, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ScoreWindows(*model, tokens, 2, [] { return true; }).status().code(),
            absl::StatusCode::kCancelled);
  const auto other = LoadOrDie(StrCat(GRADQ_FIXTURES, "/docs-llama-6m"));
  EXPECT_EQ(CompareWindows(*model, *other, tokens, 2, nullptr, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gradq
