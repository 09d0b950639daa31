// Leases of later rounds on the tiny fixture against a fake coordinator: weights come from shards
// that are read, kept and lost; scores, decided solves and detached weights.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "lib/format/quantized_linear.h"
#include "lib/transformer/numerics.h"
#include "services/worker/shard_cache.h"
#include "tests/format/random_linear.h"
#include "tests/services/worker_task_fixture.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;
using Finish = v1::FinishTaskRequest;

// rtn at 3 bits with ReQuant's rounds: quantize (no pass), requantize, detach. One stage.
class WorkerRounds : public TaskRunnerTest {
 protected:
  WorkerRounds() {
    recipe_.Clear();
    recipe_.set_method("rtn");
    recipe_.set_bits(3);
    recipe_.set_groups(1);
    recipe_.set_outliers("pqi");
    (*recipe_.mutable_outlier_options())["steps"] = "1";
    (*recipe_.mutable_outlier_options())["nodes"] = "2";
    first_blocks_ = {0};
    StartWith({});
  }

  v1::Lease SolveLease(int round, const std::string& linear) {
    v1::Lease lease = Lease(StrCat("solve-", round, "-", linear));
    lease.mutable_spec()->mutable_solve_linear()->set_round(round);
    lease.mutable_spec()->mutable_solve_linear()->set_linear(linear);
    return lease;
  }
  v1::Lease PathLease(int round) {
    v1::Lease lease = Lease(StrCat("backward-", round, "-0"));
    v1::RunStage& run = *lease.mutable_spec()->mutable_run_stage();
    run.set_round(round);
    run.set_direction(v1::RunStage::BACKWARD);
    run.set_loss(true);
    run.set_chunks(4 * 2);
    run.add_accumulate("weight_gradient");
    for (const LinearShape& linear : linears_) AddShard(linear.name, &lease);
    return lease;
  }
  v1::Lease ScoreLease(int round, const std::string& linear) {
    v1::Lease lease = Lease(StrCat("score-", round, "-", linear));
    lease.mutable_spec()->mutable_score_linear()->set_round(round);
    lease.mutable_spec()->mutable_score_linear()->set_linear(linear);
    AddShard(linear, &lease);
    Locate(lease.add_statistics(), StrCat("backward-", round, "-0"), "stat/" + linear);
    lease.mutable_statistics(0)->mutable_stream()->set_round(round);
    return lease;
  }
  void AddShard(const std::string& linear, v1::Lease* lease) {
    v1::ShardRef& shard = *lease->add_shards();
    shard.set_linear(linear);
    shard.set_variant(-1);
    shard.set_sha256(digests_.at(linear));
  }
  // Round 0 of all linears.
  void Quantize() {
    for (const LinearShape& linear : linears_) {
      const Finish finish = RunLease(SolveLease(0, linear.name));
      ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();
      digests_[linear.name] = finish.result().shards(0).sha256();
    }
  }

  const std::vector<LinearShape> linears_ =
      LinearsOf((*Checkpoint::Open(*OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama")))->geometry());
  std::map<std::string, std::string> digests_;
};

TEST_F(WorkerRounds, IntegrateScoreSolveAndDetach) {
  Quantize();
  const Finish pass = RunLease(PathLease(1));
  ASSERT_EQ(pass.outcome(), Finish::SUCCEEDED) << pass.message();
  ASSERT_EQ(pass.result().node_loss_sum_size(), 4);
  EXPECT_EQ(pass.result().loss_sum(), pass.result().node_loss_sum(0));
  EXPECT_EQ(pass.result().loss_tokens(), kSequences * (kLength - 1));
  EXPECT_EQ(coordinator_.shard_reads, 21) << "three nodes off the checkpoint share what was read";

  double integral = 0;
  for (const LinearShape& linear : linears_) {
    const Finish scored = RunLease(ScoreLease(1, linear.name));
    ASSERT_EQ(scored.outcome(), Finish::SUCCEEDED) << scored.message();
    const v1::ScoreSummary& score = scored.result().score();
    EXPECT_EQ(score.linear(), linear.name);
    EXPECT_EQ(score.weights(), linear.out_features * linear.in_features);
    EXPECT_EQ(score.bucket_size(), score.count_size());
    EXPECT_GE(score.absolute_sum(), std::fabs(score.signed_sum()));
    integral += score.signed_sum();
  }
  const double measured = (pass.result().node_loss_sum(2) - pass.result().node_loss_sum(3)) /
                          static_cast<double>(pass.result().loss_tokens());
  EXPECT_NEAR(integral, measured, 0.02 * std::fabs(measured)) << "two nodes";
  EXPECT_EQ(coordinator_.shard_reads, 21);

  const std::string linear = "model.layers.0.self_attn.v_proj";
  v1::Lease solve = SolveLease(1, linear);
  solve.mutable_decision()->set_outlier_fraction(0.01);
  Finish finish = RunLease(solve);
  ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();
  ASSERT_EQ(finish.result().shards_size(), 1);
  EXPECT_NEAR(finish.result().shards(0).outlier_fraction(), 0.01, 0.0005);
  digests_[linear] = finish.result().shards(0).sha256();

  ASSERT_EQ(RunLease(PathLease(2)).outcome(), Finish::SUCCEEDED);
  EXPECT_EQ(coordinator_.shard_reads, 22) << "one is new";
  v1::Lease detach = SolveLease(2, linear);
  AddShard(linear, &detach);
  detach.mutable_decision()->set_threshold(0);
  Locate(detach.add_statistics(), "backward-2-0", "stat/" + linear);
  detach.mutable_statistics(0)->mutable_stream()->set_round(2);
  finish = RunLease(detach);
  ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();
  // About half of all ways raise the loss.
  EXPECT_GT(finish.result().shards(0).outlier_fraction(), 0.3);
  EXPECT_LT(finish.result().shards(0).outlier_fraction(), 0.7);
}

TEST_F(WorkerRounds, LostAndDamagedShardsAreTriedAgain) {
  Quantize();
  coordinator_.piece_bytes = 512;
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.damage_shards = true;
  }
  Finish finish = RunLease(PathLease(1));
  EXPECT_EQ(finish.outcome(), Finish::FAILED_RETRYABLE) << finish.message();
  EXPECT_EQ(finish.code(), static_cast<int>(absl::StatusCode::kDataLoss));
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.damage_shards = false;
    coordinator_.lost_answers = 3;  // breaks off three times, goes on where it stopped
  }
  finish = RunLease(PathLease(1));
  EXPECT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();

  v1::Lease lost = PathLease(1);
  lost.set_attempt(2);
  lost.mutable_shards(0)->set_sha256(std::string(64, '0'));
  finish = RunLease(lost);
  EXPECT_EQ(finish.outcome(), Finish::FAILED_RETRYABLE) << finish.message();
  EXPECT_EQ(finish.code(), static_cast<int>(absl::StatusCode::kNotFound));
  v1::Lease score = ScoreLease(1, linears_[0].name);
  score.mutable_shards(0)->set_sha256(std::string(64, '0'));
  finish = RunLease(score);
  EXPECT_EQ(finish.outcome(), Finish::FAILED_RETRYABLE) << finish.message();
  EXPECT_EQ(finish.code(), static_cast<int>(absl::StatusCode::kNotFound));
}

TEST_F(WorkerRounds, PlansThatDontFitAreFatal) {
  Quantize();
  v1::Lease lease = PathLease(1);
  lease.mutable_spec()->mutable_run_stage()->set_chunks(7);
  EXPECT_EQ(RunLease(lease).outcome(), Finish::FAILED_FATAL);
  lease = PathLease(1);
  lease.mutable_spec()->mutable_run_stage()->set_round(9);
  EXPECT_EQ(RunLease(lease).outcome(), Finish::FAILED_FATAL);
  lease = PathLease(1);
  lease.clear_shards();
  const Finish finish = RunLease(lease);
  EXPECT_EQ(finish.outcome(), Finish::FAILED_FATAL);
  EXPECT_THAT(finish.message(), HasSubstr("no shard"));
}

TEST(ShardCache, KeepsWhatWasUsedLast) {
  std::vector<std::string> shards, digests;
  for (uint32_t seed = 0; seed < 3; ++seed) {
    shards.push_back(SerializeShard(RandomLinear("a", Encoding::kLut, 3, 32, 64, 0, seed)));
    digests.push_back(Sha256Hex(shards.back()));
  }
  const auto size = static_cast<int64_t>(shards[0].size());
  ShardCache cache(2 * size);
  int reads = 0;
  const auto get = [&](size_t i) {
    return cache.Get(digests[i], [&]() -> absl::StatusOr<std::string> {
      ++reads;
      return shards[i];
    });
  };
  const auto first = get(0);
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(get(1).ok());
  EXPECT_EQ(*get(0), *first);
  EXPECT_EQ(reads, 2);
  EXPECT_TRUE(get(2).ok());
  EXPECT_EQ(cache.bytes(), 2 * size);
  EXPECT_TRUE(get(0).ok());
  EXPECT_EQ(reads, 3) << "1 was used longest ago";
  EXPECT_TRUE(get(1).ok());
  EXPECT_EQ(reads, 4);
  EXPECT_TRUE(absl::IsDataLoss(
      cache.Get(std::string(64, 'f'), [&]() -> absl::StatusOr<std::string> { return shards[0]; })
          .status()));
  cache.Clear();
  EXPECT_EQ(cache.bytes(), 0);
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
