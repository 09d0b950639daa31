// Leases run on the tiny fixture against a fake coordinator: what they produce, and the class of
// what goes wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "lib/format/quantized_linear.h"
#include "lib/transformer/numerics.h"
#include "tests/services/worker_task_fixture.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;
using Finish = v1::FinishTaskRequest;

TEST_F(TaskRunnerTest, StagesFeedEachOtherAndTheirStatisticsAreSolved) {
  StartWith({});
  Finish finish = RunLease(StageLease(0, v1::RunStage::FORWARD));
  ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();

  v1::Lease last = StageLease(1, v1::RunStage::BACKWARD);
  Locate(last.mutable_activations(), "forward-0-0");
  finish = RunLease(last);
  ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();
  EXPECT_EQ(finish.result().loss_tokens(), kSequences * (kLength - 1));
  EXPECT_GT(finish.result().loss_sum(), 0);
  EXPECT_GT(finish.result().compute_seconds(), 0);

  v1::Lease first = StageLease(0, v1::RunStage::BACKWARD);
  Locate(first.mutable_gradients(), "backward-0-1");
  finish = RunLease(first);
  ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();

  const std::string linear = "model.layers.0.self_attn.v_proj";
  v1::Lease solve = Lease("solve-0-0-v_proj");
  solve.mutable_spec()->mutable_solve_linear()->set_linear(linear);
  Locate(solve.add_statistics(), "backward-0-0", "stat/" + linear);
  finish = RunLease(solve);
  ASSERT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();
  ASSERT_EQ(finish.result().shards_size(), 1);
  const v1::ShardSummary& shard = finish.result().shards(0);
  ASSERT_EQ(coordinator_.shards.size(), 1u);
  EXPECT_EQ(shard.sha256(), Sha256Hex(coordinator_.shards[0]));
  EXPECT_EQ(shard.bytes(), static_cast<int64_t>(coordinator_.shards[0].size()));
  const auto parsed = ParseShard(coordinator_.shards[0]);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->name, linear);
  EXPECT_EQ(shard.linear(), linear);
  EXPECT_EQ(shard.bits(), 3);
  EXPECT_EQ(shard.weights(), 32 * 64);
  EXPECT_GT(shard.predicted_loss_increase(), 0);
  EXPECT_LE(shard.objective_final(), shard.objective_initial());

  // The coordinator's order ends the job here: nothing is held any more.
  EXPECT_GT(store_->memory_bytes(), 0);
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.freed.emplace_back().set_job("jobs/1");
  }
  while (store_->memory_bytes() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST_F(TaskRunnerTest, ModelAndItsDigestDecideHowItIsRead) {
  StartWith({});
  v1::Lease lease = StageLease(0, v1::RunStage::FORWARD);
  lease.mutable_job()->set_model_digest("another model");
  // Nothing is served yet: the network may heal.
  Finish finish = RunLease(lease);
  EXPECT_EQ(finish.outcome(), Finish::FAILED_RETRYABLE) << finish.message();
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.model = *OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama");
  }
  finish = RunLease(lease);
  EXPECT_EQ(finish.outcome(), Finish::SUCCEEDED) << finish.message();
}

TEST_F(TaskRunnerTest, LostInputIsNamed) {
  StartWith({});
  v1::Lease lease = StageLease(1, v1::RunStage::BACKWARD);
  Locate(lease.mutable_activations(), "forward-0-0");
  const Finish finish = RunLease(lease);
  EXPECT_EQ(finish.outcome(), Finish::INPUT_LOST);
  ASSERT_EQ(finish.lost_inputs_size(), 1);
  EXPECT_EQ(finish.lost_inputs(0).task(), "forward-0-0");
}

TEST_F(TaskRunnerTest, RevokedTaskStopsAndLeavesNoStream) {
  StartWith({});
  auto never = *store_->Create({"jobs/1", 0, "forward-0-0", 1, "out"});
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.revoke = true;
  }
  v1::Lease lease = StageLease(1, v1::RunStage::BACKWARD);
  Locate(lease.mutable_activations(), "forward-0-0");
  EXPECT_EQ(RunLease(lease).outcome(), Finish::STOPPED);
  EXPECT_FALSE(store_->Contains({"jobs/1", 0, "backward-0-1", 1, "out"}));
}

TEST_F(TaskRunnerTest, BadTokensAndBadPlansAreFatal) {
  StartWith({});
  v1::Lease lease = StageLease(7, v1::RunStage::FORWARD);
  EXPECT_EQ(RunLease(lease).outcome(), Finish::FAILED_FATAL);
  SetTokens(std::vector<int32_t>(kSequences * kLength, 512));
  const Finish finish = RunLease(StageLease(0, v1::RunStage::FORWARD));
  EXPECT_EQ(finish.outcome(), Finish::FAILED_FATAL);
  EXPECT_THAT(finish.message(), HasSubstr("512"));
}

TEST_F(TaskRunnerTest, TokensThatEndEarlyAreTriedAgain) {
  StartWith({});
  SetTokens(std::vector<int32_t>(3, 1));
  const Finish finish = RunLease(StageLease(0, v1::RunStage::FORWARD));
  EXPECT_EQ(finish.outcome(), Finish::FAILED_RETRYABLE) << finish.message();
}

TEST_F(TaskRunnerTest, FullStreamsAreTheWorkersFault) {
  StartWith({.memory_limit = 16});
  const Finish finish = RunLease(StageLease(0, v1::RunStage::FORWARD));
  EXPECT_EQ(finish.outcome(), Finish::FAILED_WORKER);
  EXPECT_EQ(finish.code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
}

TEST_F(TaskRunnerTest, MissingStatisticsAreFatal) {
  StartWith({});
  v1::Lease solve = Lease("solve-0-0-v_proj");
  solve.mutable_spec()->mutable_solve_linear()->set_linear("model.layers.0.self_attn.v_proj");
  const Finish finish = RunLease(solve);
  EXPECT_EQ(finish.outcome(), Finish::FAILED_FATAL) << finish.message();
  EXPECT_TRUE(coordinator_.shards.empty());
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
