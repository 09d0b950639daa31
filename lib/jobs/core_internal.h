#pragma once

// The coordinator core's class; its calls are spread over coordinator_core.cc (open, clients),
// worker_calls.cc and leases.cc (workers), worker_loss.cc, job_lifecycle.cc and mixed_widths.cc
// (what happens to a job). Every mutating call is Begin, change, Flush.

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lib/jobs/coordinator_core.h"
#include "lib/jobs/fleet.h"
#include "lib/jobs/job_state.h"
#include "lib/jobs/journal.h"
#include "lib/jobs/lineage.h"

namespace gradq {

class CoreImpl final : public CoordinatorCore {
 public:
  CoreImpl(JobStore* store, CoreOptions options, const StoreContent& content, Now now);
  // Second half of Open: records into jobs, what the restart ended, one commit.
  absl::Status Restore(const StoreContent& content);

  absl::StatusOr<v1::Job> CreateJob(Now now, const NewJob& job) override;
  absl::StatusOr<std::optional<v1::Job>> FindRequest(std::string_view request_id,
                                                     const v1::JobSpec& spec) const override;
  absl::StatusOr<v1::Job> GetJob(std::string_view name) const override;
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const v1::ListJobsRequest& request) const override;
  absl::StatusOr<v1::ListTasksResponse> ListTasks(
      const v1::ListTasksRequest& request) const override;
  absl::StatusOr<v1::ListWorkersResponse> ListWorkers(
      const v1::ListWorkersRequest& request) const override;
  absl::StatusOr<v1::ListEventsResponse> ListEvents(
      const v1::ListEventsRequest& request) const override;
  absl::StatusOr<v1::Frontier> GetFrontier(const v1::GetFrontierRequest& request) const override;
  absl::StatusOr<v1::Job> CancelJob(Now now, const v1::CancelJobRequest& request) override;

  absl::StatusOr<v1::RegisterWorkerResponse> RegisterWorker(
      Now now, const v1::RegisterWorkerRequest& request) override;
  absl::StatusOr<std::optional<v1::Lease>> TryLease(Now now, const std::string& session) override;
  absl::StatusOr<v1::HeartbeatResponse> Heartbeat(Now now,
                                                  const v1::HeartbeatRequest& request) override;
  absl::Status FinishTask(Now now, const v1::FinishTaskRequest& request) override;
  absl::Status DrainWorker(Now now, const v1::DrainWorkerRequest& request) override;
  absl::Status CheckAttempt(const std::string& session, const std::string& task,
                            int64_t attempt) const override;
  absl::StatusOr<v1::JobContext> ContextFor(const std::string& session,
                                            const std::string& job) const override;

  absl::Status Tick(Now now) override;
  absl::Duration NextDeadline() const override;
  absl::StatusOr<std::vector<v1::ShardSummary>> Shards(const std::string& job) const override;
  absl::StatusOr<v1::JobRecord> Record(const std::string& job) const override;
  bool BeginRename(Now now, const std::string& job) override;
  absl::Status FinishAssemble(Now now, const std::string& job,
                              const absl::StatusOr<AssembleResult>& result) override;
  std::vector<Action> TakeActions() override { return std::exchange(actions_, {}); }
  int64_t changed() const override { return changed_; }

 private:
  // --- coordinator_core.cc ---
  // Moves time: phase seconds, expired workers, time-outs. First in every mutating call.
  void Begin(Now now);
  // Commits what changed; last in every mutating call. On error the changes stay for the next one.
  absl::Status Flush();
  void Event(const JobState* job, const std::string& subject, std::string_view type,
             std::string message);
  void TouchJob(const JobState& job) { dirty_jobs_.insert(job.name()); }
  void TouchTask(JobState* job, int task);
  // nullptr when there is none.
  JobState* FindJob(std::string_view name);
  const JobState* FindJob(std::string_view name) const;
  // The job and index of a task name; {nullptr, -1} when there is none.
  std::pair<JobState*, int> FindTask(const std::string& name);
  absl::Status RestoreJob(JobState* job, const StoreContent& content);
  void AccruePhases(absl::Duration by);
  std::string ReadToken(const JobState& job) const;

  // --- leases.cc ---
  std::optional<std::pair<JobState*, int>> ChooseTask(const WorkerState& worker);
  void GiveLease(JobState* job, int task, WorkerState* worker);
  v1::Lease BuildLease(const JobState& job, const TaskState& task) const;

  // --- worker_calls.cc ---
  bool IsLive(const std::string& session, const std::string& task, int64_t attempt) const;
  absl::Status ApplyOutcome(JobState* job, int task, WorkerState* worker,
                            const v1::FinishTaskRequest& request);
  absl::Status ApplySuccess(JobState* job, int task, const v1::FinishTaskRequest& request);
  void ApplyInputLost(JobState* job, int task, const v1::FinishTaskRequest& request);
  // The attempt ends without a result and the task is PENDING again.
  void ReturnTask(JobState* job, int task, std::string_view event, const std::string& message);
  // ReturnTask, charged to the budget of hand-backs or failures; may fail the task for good.
  void HandBack(JobState* job, int task, const std::string& message);
  void ChargeFailure(JobState* job, int task, const v1::FinishTaskRequest& request);

  // --- worker_loss.cc ---
  // The worker showed that it does not run its slot's task any more.
  void ClearSlot(WorkerState* worker);
  // `counted`: its running task has lost a worker.
  void LoseWorker(WorkerState* worker, v1::Worker::State state, bool counted,
                  const std::string& why);
  void LoseAttempt(JobState* job, int task, bool counted, const std::string& why);
  void ExpireWorkers();

  // --- job_lifecycle.cc ---
  // MakePlan and the task graph; on error the job has FAILED and false is returned.
  bool StartJob(JobState* job, const v1::Worker& asking);
  absl::Status PlanFor(JobState* job, const v1::Worker& asking);
  // Lineage of a RUNNING job, its orders to workers, and the next phase when all is solved.
  void SettleJob(JobState* job);
  void ApplySettle(JobState* job, const SettleResult& result);
  // Decides what can be decided; on error the job has FAILED. True: something new is known.
  bool DecideRounds(JobState* job);
  void StartAssembly(JobState* job, bool may_be_renamed);
  // The task can't succeed: fails the job, or only its validation.
  void FailTask(JobState* job, int task, int code, const std::string& message);
  void FailJob(JobState* job, int code, const std::string& message);
  void EndValidation(JobState* job, v1::Validation::State state, const std::string& message);
  // Terminal: stops attempts, frees streams everywhere.
  void EndJob(JobState* job, v1::Job::State state, std::string_view event,
              const std::string& message);
  void RevokeSlots(const JobState& job);
  // CANCELLING becomes CANCELLED when nobody works on the job any more.
  void MaybeFinishCancel(JobState* job, bool waited_long_enough = false);
  void ExpireJobs();

  // --- mixed_widths.cc ---
  // The job whose shards this one is put together from: itself, or its source_job.
  const JobState& ShardOwner(const JobState& job) const;
  // OK when other points can be made from the job's shards.
  absl::Status CheckKeptShards(const JobState& job) const;
  // Fills the record of another point of spec.source_job from that job. Errors as CreateJob.
  absl::Status FillFromSource(v1::JobRecord* record) const;
  // Chooses the widths of a QUEUED point and starts its assembly.
  void StartPoint(JobState* job);
  void ExpireShards(JobState* job);

  JobStore* store_;
  CoreOptions options_;
  Journal journal_;
  Fleet fleet_;
  std::map<int64_t, JobState> jobs_;  // oldest first
  std::map<std::string, v1::RequestRecord, std::less<>> requests_;
  std::map<std::string, absl::Duration> cancel_since_;
  int64_t epoch_;
  int64_t next_session_ = 1;
  int64_t next_job_ = 1;
  Now now_;
  std::set<std::string> dirty_jobs_;
  std::set<std::pair<std::string, int>> dirty_tasks_;
  std::vector<Action> staged_actions_;  // given out once what caused them is durable
  std::vector<Action> actions_;
  int64_t changed_ = 0;
};

}  // namespace gradq
