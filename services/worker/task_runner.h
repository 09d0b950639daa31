#pragma once

// What gradq-worker does with a lease: opens the job's model, runs the stage or solves the linear
// with lib/pipeline, uploads the shard, and says which class a failure has. Run, Finished,
// SessionLost and Idle come on the compute thread; Orders and DescribeStreams on the heartbeat
// thread.

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/format/checkpoint.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/stage_runner.h"
#include "services/worker/chunk_service.h"
#include "services/worker/session.h"

namespace gradq {

struct TaskRunnerOptions {
  std::string device = "cpu";
  bool insecure = false;
  // Memory this worker may use; decides whether a backward pass recomputes its blocks. 0: unknown.
  int64_t memory_bytes = 0;
};

class TaskRunner : public LeaseHandler {
 public:
  // All must outlive the runner. Attach the session before it runs.
  TaskRunner(TaskRunnerOptions options, ChunkStore* store, ChunkService* service, ThreadPool* pool)
      : options_(std::move(options)), store_(store), service_(service), pool_(pool) {}
  void Attach(Session* session) { session_ = session; }

  TaskOutcome Run(Attempt& attempt) override;
  void Finished(const v1::Lease& lease, bool kept) override;
  // A stage's streams end with this process, so finishing it is of no use; a shard is.
  bool FinishesInDrain(const v1::Lease& lease) override { return lease.spec().has_solve_linear(); }
  void SessionLost() override;
  void Idle() override { DropEndedJobs(); }
  void Orders(const v1::HeartbeatResponse& response) override;
  void DescribeStreams(v1::HeartbeatRequest* request) override;

 private:
  class Inputs;

  // The job the worker is on; one at a time.
  struct OpenJob {
    std::string name;
    std::shared_ptr<const Checkpoint> checkpoint;
    std::vector<int32_t> tokens;  // [sequences, length]; empty until a stage needs them
  };
  // Weights of the last stage, kept for the backward task that follows its forward task.
  struct OpenStage {
    std::string job;
    StageRange range;
    StageSetup setup;
    std::unique_ptr<LoadedStage> stage;
  };

  TaskOutcome RunStageTask(Attempt& attempt);
  TaskOutcome SolveTask(Attempt& attempt);
  absl::Status OpenModel(const v1::JobContext& context);
  absl::Status ReadTokens(const v1::JobContext& context);
  absl::StatusOr<LoadedStage*> StageFor(const v1::JobContext& context, const v1::RunStage& spec);
  bool NeedsRecompute(const v1::JobContext& context) const;
  void DropEndedJobs();

  const TaskRunnerOptions options_;
  ChunkStore* const store_;
  ChunkService* const service_;
  ThreadPool* const pool_;
  Session* session_ = nullptr;
  OpenJob job_;
  OpenStage stage_;
  std::mutex mutex_;
  std::set<std::string> ended_jobs_;
};

}  // namespace gradq
