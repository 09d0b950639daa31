#pragma once

// What gradq-worker does with a lease: opens the job's model and the shards that the round's
// weights come from, runs the stage, scores or solves the linear with lib/pipeline, uploads the
// shards, and says which class a failure has. Run, Finished, SessionLost and Idle come on the
// compute thread; Orders and DescribeStreams on the heartbeat thread.

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/catalog/program.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/linear_solver.h"
#include "lib/pipeline/stage_runner.h"
#include "services/worker/chunk_service.h"
#include "services/worker/job_files.h"
#include "services/worker/session.h"
#include "services/worker/shard_cache.h"

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
      : options_(std::move(options)),
        store_(store),
        service_(service),
        pool_(pool),
        shards_(options_.memory_bytes > 0 ? options_.memory_bytes / 16 : int64_t{1} << 30) {}
  void Attach(Session* session) { session_ = session; }

  TaskOutcome Run(Attempt& attempt) override;
  void Finished(const v1::Lease& lease, bool kept) override;
  // A stage's streams end with this process, so finishing it is of no use; shards and scores stay.
  bool FinishesInDrain(const v1::Lease& lease) override { return !lease.spec().has_run_stage(); }
  void SessionLost() override;
  void Idle() override { DropEndedJobs(); }
  void Orders(const v1::HeartbeatResponse& response) override;
  void DescribeStreams(v1::HeartbeatRequest* request) override;

 private:
  // Weights of the last stage, kept for the next node or task of the same ones.
  struct OpenStage {
    std::string job;
    StageRange range;
    StageSetup setup;
    std::pair<int, PathNode> weights;  // round of the shards (-1: the checkpoint alone) and node
    std::unique_ptr<LoadedStage> stage;
  };

  // The job's model is open and the lease's round known.
  TaskOutcome RunStageTask(Attempt& attempt, const Round& round);
  TaskOutcome ScoreTask(Attempt& attempt, const Round& round);
  TaskOutcome SolveTask(Attempt& attempt, const Round& round);
  absl::StatusOr<std::vector<SolvedLinear>> Solve(const Attempt& attempt, const Round& round,
                                                  ChunkReader* statistics);
  absl::Status OpenJob(const v1::JobContext& context);
  // The shards that the lease names for a node's variant.
  QuantizedByName ShardsOf(const Attempt& attempt, int variant);
  absl::StatusOr<LoadedStage*> StageFor(const Attempt& attempt, const Round& round, int node);
  bool NeedsRecompute(const v1::JobContext& context) const;
  void DropEndedJobs();

  const TaskRunnerOptions options_;
  ChunkStore* const store_;
  ChunkService* const service_;
  ThreadPool* const pool_;
  Session* session_ = nullptr;
  JobFiles files_;
  ShardCache shards_;
  OpenStage stage_;
  std::mutex mutex_;
  std::set<std::string> ended_jobs_;
};

}  // namespace gradq
