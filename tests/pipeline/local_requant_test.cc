// Jobs of several rounds in one process: the path integral is the loss difference it should be, and
// bytes do not depend on the schedule in later rounds either. What the coordinator would decide is
// decided here in the simplest way that exercises every kind of solve.

#include <gtest/gtest.h>

#include <cmath>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/log_buckets.h"
#include "lib/pipeline/local_run.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/transformer/numerics.h"

namespace gradq {
namespace {

constexpr int64_t kSequences = 8, kLength = 256;

// The first calibration windows of tiny-llama.
std::vector<int32_t> Tokens() {
  const std::string folder = GRADQ_FIXTURES "/tiny-llama";
  const auto tokenizer = *Tokenizer::Open(*ReadFile(folder + "/tokenizer.json"));
  const auto ids = *tokenizer->Encode(*ReadFile(folder + "/calibration.txt"));
  return *CutWindows(ids, kLength, kSequences, tokenizer->vocab_size());
}

// Shares proportional to the mean score; the upper edge of all scores' histogram beyond one weight
// in a hundred as threshold; for shrinkages the lowest loss.
absl::StatusOr<LinearDecisions> Decide(const LocalRound& found) {
  LinearDecisions decisions;
  std::map<int32_t, int64_t> histogram;
  double mass = 0;
  int64_t weights = 0;
  for (const auto& [linear, scores] : found.scores) {
    for (size_t i = 0; i < scores.bucket.size(); ++i) {
      histogram[scores.bucket[i]] += scores.count[i];
    }
    mass += scores.absolute_sum;
    weights += scores.weights;
  }
  int64_t taken = 0;
  int32_t least = 0;
  for (auto bucket = histogram.rbegin(); bucket != histogram.rend(); ++bucket) {
    least = bucket->first;
    taken += bucket->second;
    if (taken * 100 >= weights) break;
  }
  for (const auto& [linear, scores] : found.scores) {
    SolveDecision& decision = decisions[linear];
    if (found.round.decision == RoundDecision::kShares) {
      decision.outlier_fraction =
          0.004 * (scores.absolute_sum / mass) *
          (static_cast<double>(weights) / static_cast<double>(scores.weights));
    } else {
      decision.threshold = LogBucketEdge(least);
    }
  }
  return decisions;
}

LocalJob TinyJob() {
  LocalJob job;
  job.checkpoint = *Checkpoint::Open(*OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama"));
  job.tokens = Tokens();
  job.recipe.groups = 1;
  job.sequences = kSequences;
  job.length = kLength;
  job.chunk_sequences = 3;  // the last chunk is shorter
  job.decide = Decide;
  return job;
}

LocalJob Requant(int bits, int nodes) {
  LocalJob job = TinyJob();
  job.recipe.method = "squeezellm";
  job.recipe.bits = bits;
  job.recipe.outliers = "pqi";
  job.recipe.outlier_options = {{"steps", "1"}, {"nodes", StrCat(nodes)}};
  return job;
}

LocalResult RunJob(const LocalJob& job, int threads) {
  EXPECT_TRUE(SetUpNumerics(threads, "cpu").ok());
  ThreadPool pool(threads);
  auto result = RunLocally(job, &pool);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : LocalResult{};
}

int64_t Outliers(const LocalResult& result) {
  int64_t outliers = 0;
  for (const auto& [name, solved] : result.linears) {
    outliers += static_cast<int64_t>(solved.linear.outliers.col.size());
  }
  return outliers;
}

void ExpectSameShards(const LocalResult& one, const LocalResult& other) {
  ASSERT_EQ(one.linears.size(), 21u);
  for (const auto& [name, solved] : one.linears) {
    EXPECT_EQ(other.linears.at(name).sha256, solved.sha256) << name;
  }
}

// Few windows make a rough path at 2 bits: five nodes there, three elsewhere.
TEST(LocalRequant, IntegralIsTheMeasuredLossDifference) {
  for (const auto& [bits, nodes] : {std::pair(2, 5), std::pair(3, 3), std::pair(4, 3)}) {
    const LocalResult result = RunJob(Requant(bits, nodes), 2);
    ASSERT_EQ(result.rounds.size(), 3u);
    double before = 1e9;
    for (const LocalRound& found : result.rounds) {
      if (!found.round.score) continue;
      ASSERT_EQ(found.node_loss.size(), nodes + 2u);
      const double measured = found.node_loss[nodes] - found.node_loss[nodes + 1];
      EXPECT_NEAR(found.node_loss[nodes + 1], result.loss, 1e-6 * result.loss);
      EXPECT_NEAR(found.integral(), measured, 0.005 * measured)
          << bits << " bits, " << found.round.purpose;
      EXPECT_LT(measured, before) << "outliers help, " << bits << " bits";
      before = measured;
    }
    EXPECT_GT(Outliers(result), 0);
  }
}

TEST(LocalRequant, BytesDoNotDependOnTheSchedule) {
  LocalJob job = Requant(2, 2);
  const LocalResult one = RunJob(job, 1);
  job.stages = 3;
  const LocalResult three = RunJob(job, 2);
  ExpectSameShards(one, three);
  for (size_t r = 0; r < one.rounds.size(); ++r) {
    EXPECT_EQ(one.rounds[r].node_loss, three.rounds[r].node_loss) << r;
    EXPECT_EQ(one.rounds[r].integral(), three.rounds[r].integral()) << r;
  }
}

TEST(LocalRounds, OneThresholdOfTheWholeModel) {
  LocalJob job = TinyJob();
  job.recipe.method = "rtn";
  job.recipe.outliers = "gwq";
  job.recipe.outlier_options = {{"scope", "model"}};
  const LocalResult one = RunJob(job, 2);
  // A bucket beyond one in a hundred, and buckets are 1.1 % wide.
  int64_t weights = 0;
  for (const auto& [name, solved] : one.linears) weights += solved.linear.weights();
  const double share = static_cast<double>(Outliers(one)) / static_cast<double>(weights);
  EXPECT_GE(share, 0.01);
  EXPECT_LT(share, 0.0103);
  job.stages = 2;
  ExpectSameShards(one, RunJob(job, 1));
}

TEST(LocalRounds, HeldOutWindowsChooseTheShrinkage) {
  LocalJob job = TinyJob();
  job.recipe.bits = 2;
  job.recipe.objective = Objective::kCoupled;
  job.recipe.options = {{"holdout", "2"}, {"iterations", "1"}, {"cycles", "1"}};
  std::vector<double> losses;
  job.decide = [&](const LocalRound& found) -> absl::StatusOr<LinearDecisions> {
    losses = found.node_loss;
    LinearDecisions decisions;
    for (const LinearShape& linear : LinearsOf(job.checkpoint->geometry())) {
      decisions[linear.name].variant = 2;
    }
    return decisions;
  };
  const LocalResult result = RunJob(job, 2);
  ASSERT_EQ(result.rounds.size(), 3u);
  EXPECT_EQ(result.rounds[1].round.first_sequence, kSequences - 2);
  const std::vector<Variant> variants = VariantsOf(*ResolveRecipe(job.recipe));
  ASSERT_EQ(losses.size(), variants.size());
  for (const double loss : losses) EXPECT_GT(loss, result.loss);
  for (const auto& [name, solved] : result.linears) {
    EXPECT_EQ(solved.shrinkage, variants[2].shrinkage) << name;
  }
}

TEST(LocalRounds, WidthsAreChosenAfterTheSolves) {
  LocalJob job = TinyJob();
  job.recipe.method = "squeezellm";
  job.recipe.average_bits = 3;
  job.decide = [&](const LocalRound& found) -> absl::StatusOr<LinearDecisions> {
    LinearDecisions decisions;
    for (const auto& [name, solved] : found.solved) {
      EXPECT_EQ(solved.size(), 3u);
      // Price falls with width.
      for (int i = 0; i + 1 < 3; ++i) {
        EXPECT_GT(solved[i].linear.record.predicted_loss_increase.value_or(0),
                  solved[i + 1].linear.record.predicted_loss_increase.value_or(0));
      }
      decisions[name].variant = name.ends_with("down_proj") ? 2 : 0;
    }
    return decisions;
  };
  const LocalResult result = RunJob(job, 2);
  ASSERT_EQ(result.linears.size(), 21u);
  for (const auto& [name, solved] : result.linears) {
    EXPECT_EQ(solved.linear.bits, name.ends_with("down_proj") ? 4 : 2) << name;
  }
}

TEST(LocalRounds, DecisionsAreNotMadeUp) {
  LocalJob job = Requant(2, 1);
  job.decide = nullptr;
  ThreadPool pool(1);
  EXPECT_TRUE(absl::IsUnimplemented(RunLocally(job, &pool).status()));
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
