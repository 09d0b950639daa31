// The promise of design 2: a job's bytes do not depend on how it is cut into stages, on threads, on
// recomputing, or on where its streams lie.

#include "lib/pipeline/local_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/transformer/numerics.h"

namespace gradq {
namespace {

constexpr int64_t kSequences = 6;
constexpr int64_t kLength = 48;

std::shared_ptr<const Checkpoint> TinyLlama() {
  auto folder = OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama");
  EXPECT_TRUE(folder.ok()) << folder.status();
  auto checkpoint = Checkpoint::Open(*std::move(folder));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

// Any tokens will do: nothing here depends on their meaning.
std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens;
  uint32_t state = 7;
  for (int64_t i = 0; i < kSequences * kLength; ++i) {
    state = state * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((state >> 16) % 512));
  }
  return tokens;
}

LocalJob TinyJob() {
  LocalJob job;
  job.checkpoint = TinyLlama();
  job.tokens = Tokens();
  job.recipe.bits = 3;
  job.recipe.groups = 2;
  job.recipe.options = {{"iterations", "1"}, {"cycles", "1"}};
  job.sequences = kSequences;
  job.length = kLength;
  job.chunk_sequences = 4;  // the last chunk is shorter
  job.digest_statistics = true;
  return job;
}

LocalResult RunTiny(const LocalJob& job, int threads) {
  EXPECT_TRUE(SetUpNumerics(threads, "cpu").ok());
  ThreadPool pool(threads);
  auto result = RunLocally(job, &pool);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : LocalResult{};
}

const LocalResult& Reference() {
  static const LocalResult* reference = new LocalResult(RunTiny(TinyJob(), 1));
  return *reference;
}

void ExpectSame(const LocalResult& result) {
  const LocalResult& reference = Reference();
  // 3 blocks of 7 linears, 2 groups each.
  ASSERT_EQ(reference.statistics.size(), 42u);
  EXPECT_EQ(result.statistics, reference.statistics);
  ASSERT_EQ(reference.linears.size(), 21u);
  ASSERT_EQ(result.linears.size(), reference.linears.size());
  for (const auto& [name, solved] : reference.linears) {
    EXPECT_EQ(result.linears.at(name).sha256, solved.sha256) << name;
  }
  EXPECT_EQ(result.loss, reference.loss);
}

struct Variant {
  const char* name;
  int stages = 1;
  int threads = 1;
  bool recompute = false;
  bool spool = false;
};

class LocalRun : public ::testing::TestWithParam<Variant> {};

TEST_P(LocalRun, BytesDoNotDependOnTheSchedule) {
  const Variant& variant = GetParam();
  LocalJob job = TinyJob();
  job.stages = variant.stages;
  job.setup.recompute = variant.recompute;
  const std::string folder = StrCat(::testing::TempDir(), "gradq-local-run-", getpid());
  if (variant.spool) {
    job.streams = {.memory_limit = 0, .spool_dir = folder, .spool_limit = int64_t{1} << 30};
  }
  const LocalResult result = RunTiny(job, variant.threads);
  ExpectSame(result);
  EXPECT_EQ(result.spooled_bytes > 0, variant.spool);
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Schedules, LocalRun,
                         ::testing::Values(Variant{"again"}, Variant{"stages2", 2},
                                           Variant{"stages3", 3}, Variant{"threads2", 1, 2},
                                           Variant{"stages3threads2", 3, 2},
                                           Variant{"recompute", 2, 1, true},
                                           Variant{"spool", 3, 1, false, true}),
                         [](const auto& info) { return info.param.name; });

TEST(LocalRunValues, LossIsThatOfAModelThatGuesses) {
  // Random tokens: a trained model does worse than the uniform guess, ln 512 = 6.24.
  EXPECT_GT(Reference().loss, 6.0);
  EXPECT_LT(Reference().loss, 20.0);
  EXPECT_GT(Reference().predicted_loss_increase, 0.0);
}

TEST(LocalRunValues, PlainObjectiveTakesNoGradients) {
  LocalJob job = TinyJob();
  job.recipe.objective = Objective::kPlain;
  const LocalResult one = RunTiny(job, 1);
  job.stages = 3;
  const LocalResult three = RunTiny(job, 2);
  EXPECT_EQ(one.statistics, three.statistics);
  ASSERT_EQ(one.linears.size(), 21u);
  for (const auto& [name, solved] : one.linears) {
    EXPECT_EQ(three.linears.at(name).sha256, solved.sha256) << name;
    EXPECT_FALSE(solved.linear.record.predicted_loss_increase.has_value()) << name;
  }
  EXPECT_EQ(one.seconds.count("backward"), 0u);
}

TEST(LocalRunValues, FullStreamMemoryIsResourceExhausted) {
  LocalJob job = TinyJob();
  job.stages = 2;
  job.streams = {.memory_limit = 1024};
  ThreadPool pool(1);
  EXPECT_TRUE(absl::IsResourceExhausted(RunLocally(job, &pool).status()));
}

TEST(LossPrice, IsHalfTokensOverSequencesOverTheSquaredScale) {
  EXPECT_DOUBLE_EQ(LossPrice(64, 512), 0.5 * 512.0 / 64.0 * 1e-6);
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
