#pragma once

// A task runner with its session on the tiny fixture, and leases for it from a fake coordinator.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lib/jobs/plan_messages.h"
#include "services/rpc/server.h"
#include "services/worker/task_runner.h"
#include "tests/services/worker_fake_coordinator.h"

namespace gradq {

inline constexpr int kSequences = 4;
inline constexpr int kLength = 32;

class TaskRunnerTest : public ::testing::Test {
 protected:
  TaskRunnerTest() {
    recipe_.set_method("lnq");
    recipe_.set_bits(3);
    recipe_.set_objective("guided");
    recipe_.set_groups(2);
    (*recipe_.mutable_options())["iterations"] = "1";
  }
  void StartWith(ChunkStoreOptions streams) {
    store_ = *ChunkStore::Open(std::move(streams));
    service_ = std::make_unique<ChunkService>(store_.get());
    runner_ =
        std::make_unique<TaskRunner>(TaskRunnerOptions{}, store_.get(), service_.get(), &pool_);
    server_ = *RpcServer::Start({}, {&coordinator_, service_.get()});
    SessionOptions options;
    options.coordinator = server_->address();
    options.registration.set_name("w1");
    options.poll = absl::Milliseconds(200);
    options.busy_interval = absl::Milliseconds(10);
    session_ = *Session::Open(options, runner_.get());
    runner_->Attach(session_.get());
    // Different ones: a single token's statistics have rank one, which any codebook fits exactly.
    std::vector<int32_t> tokens(kSequences * kLength);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 512);
    SetTokens(tokens);
    coordinator_.piece_bytes = 1 << 10;
    thread_ = std::thread([this] { status_ = session_->Run(); });
  }
  ~TaskRunnerTest() override {
    session_->Drain();
    thread_.join();
    EXPECT_TRUE(status_.ok()) << status_;
    store_->Shutdown();
    server_->Shutdown(absl::Seconds(1));
  }

  void SetTokens(const std::vector<int32_t>& tokens) {
    std::string bytes(tokens.size() * 4, '\0');
    std::memcpy(bytes.data(), tokens.data(), bytes.size());
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.files["tokens"] = bytes;
  }

  v1::Lease Lease(const std::string& task, const std::string& job = "jobs/1") {
    v1::Lease lease;
    lease.set_task(job + "/tasks/" + task);
    lease.set_attempt(1);
    lease.set_read_token("secret");
    v1::JobContext& context = *lease.mutable_job();
    context.set_name(job);
    context.set_model_path(GRADQ_FIXTURES "/tiny-llama");
    context.set_model_digest(
        (*Checkpoint::Open(*OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama")))->layout_digest());
    context.set_calibration_tokens("tokens");
    *context.mutable_spec()->mutable_recipe() = recipe_;
    v1::JobPlan& plan = *context.mutable_plan();
    for (const int block : first_blocks_) plan.add_first_block(block);
    plan.set_blocks(3);
    plan.set_chunks(2);
    plan.set_chunk_sequences(2);
    plan.set_sequences(kSequences);
    plan.set_length(kLength);
    const auto program = MakeProgram(*ResolveRecipe(*RecipeOf(recipe_)), kSequences);
    for (const Round& round : *program) {
      *plan.add_rounds() = MessageOf(round);
    }
    return lease;
  }
  v1::Lease StageLease(int stage, v1::RunStage::Direction direction,
                       const std::string& job = "jobs/1") {
    const bool forward = direction == v1::RunStage::FORWARD;
    v1::Lease lease = Lease(StrCat(forward ? "forward-0-" : "backward-0-", stage), job);
    v1::RunStage& run = *lease.mutable_spec()->mutable_run_stage();
    run.set_stage(stage);
    run.set_chunks(2);
    run.set_direction(direction);
    run.set_loss(stage == 1 && !forward);
    if (!forward) run.add_accumulate("fisher_blocks");
    return lease;
  }
  static void Locate(v1::StreamLocation* location, const std::string& task,
                     const std::string& lane = "out") {
    location->mutable_stream()->set_job("jobs/1");
    location->mutable_stream()->set_task(task);
    location->mutable_stream()->set_attempt(1);
    location->mutable_stream()->set_lane(lane);
    location->set_worker("s1");
  }

  v1::FinishTaskRequest RunLease(const v1::Lease& lease) {
    coordinator_.Give(lease);
    ++leases_;
    coordinator_.Wait([&] { return coordinator_.finished.size() == leases_; });
    std::lock_guard lock(coordinator_.mutex);
    return coordinator_.finished.back();
  }

  // Of the leases' job: a plain one of one round in two stages.
  v1::Recipe recipe_;
  std::vector<int> first_blocks_ = {0, 2};
  FakeCoordinator coordinator_;
  ThreadPool pool_{1};
  std::unique_ptr<ChunkStore> store_;
  std::unique_ptr<ChunkService> service_;
  std::unique_ptr<TaskRunner> runner_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<Session> session_;
  std::thread thread_;
  absl::Status status_;
  size_t leases_ = 0;
};

}  // namespace gradq
