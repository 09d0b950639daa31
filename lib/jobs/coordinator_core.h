#pragma once

// The coordinator's brain: jobs, tasks, leases, workers, streams and lineage (design 2 and 3) as a
// deterministic state machine. No threads, sockets, files or clock of its own: every call takes
// `now` (monotonic) and `wall`, changes state through the JobStore before it returns, and leaves
// what the service must do as actions. Calls are serialised by the caller (services/coordinator
// holds one mutex). Simulated in tests/jobs with a manual clock, an in-memory store and a fake
// transport.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"
#include "gradq/v1/job_service.pb.h"
#include "gradq/v1/store.pb.h"
#include "gradq/v1/worker_service.pb.h"
#include "lib/jobs/job_store.h"

namespace gradq {

struct CoreOptions {
  absl::Duration lease_ttl = absl::Seconds(30);
  absl::Duration heartbeat_interval = absl::Seconds(10);
  int max_failures = 4;      // RETRYABLE failures of one task
  int max_lost_workers = 3;  // workers lost under one task before the job fails
  int max_queued_jobs = 1000;
  // How long the shards of a job with mixed widths are kept after its end.
  absl::Duration retention = absl::Hours(24);
  // Mixed into the per-job read tokens; the service draws it at random at each start.
  std::string secret;
};

struct Now {
  absl::Duration monotonic;
  absl::Time wall;
};

// A job the service has checked: model readable, texts tokenized, output free, recipe resolved.
// With spec.source_job: only the output and the evaluation text; the rest is empty and comes from
// that job.
struct NewJob {
  v1::JobSpec spec;  // recipe options resolved to the full set
  std::string request_id;
  std::string config_json;
  std::string model_path;
  std::string model_digest;
  int64_t original_bytes = 0;
  std::string calibration_tokens;  // file name for ReadModel
  std::string evaluation_tokens;
  int evaluation_sequences = 0;
  std::string output_path;  // absolute
};

// What the service must do after a call; take them with TakeActions.
struct StartAssemble {
  std::string job;
  // The rename had been allowed before a restart: what stands at the output may be this job's own
  // artifact.
  bool may_be_renamed = false;
};
struct RemoveJobData {
  std::string job;
  // The job's artifact stands (it may lie among the data): only its staged shards go. False:
  // cancelled or failed before the artifact, all may go.
  bool shards_only = false;
};
using Action = std::variant<StartAssemble, RemoveJobData>;

// What Assemble reports.
struct AssembleResult {
  std::string artifact_path;
  std::string digest;
  int64_t bytes = 0;
  double average_bits = 0;
};

class CoordinatorCore {
 public:
  // Loads what the store holds: running tasks keep their attempt and get one full TTL; workers must
  // register again.
  static absl::StatusOr<std::unique_ptr<CoordinatorCore>> Open(JobStore* store,
                                                               const CoreOptions& options, Now now);
  virtual ~CoordinatorCore() = default;

  // --- clients ---
  // ALREADY_EXISTS: request_id was used for another body. The same body returns the same job.
  // RESOURCE_EXHAUSTED: queue full. With spec.source_job: NOT_FOUND; FAILED_PRECONDITION (it has
  // not succeeded, has no mixed widths, its shards are removed); INVALID_ARGUMENT (average bits out
  // of reach, or what must be empty is not).
  virtual absl::StatusOr<v1::Job> CreateJob(Now now, const NewJob& job) = 0;
  // The job an earlier CreateJob with this request_id made; nullopt when there is none. Lets the
  // service answer a resent request before it checks that the output is free. ALREADY_EXISTS as
  // CreateJob; `spec` is resolved in the same way.
  virtual absl::StatusOr<std::optional<v1::Job>> FindRequest(std::string_view request_id,
                                                             const v1::JobSpec& spec) const = 0;
  virtual absl::StatusOr<v1::Job> GetJob(std::string_view name) const = 0;
  virtual absl::StatusOr<v1::ListJobsResponse> ListJobs(
      const v1::ListJobsRequest& request) const = 0;
  virtual absl::StatusOr<v1::ListTasksResponse> ListTasks(
      const v1::ListTasksRequest& request) const = 0;
  virtual absl::StatusOr<v1::ListWorkersResponse> ListWorkers(
      const v1::ListWorkersRequest& request) const = 0;
  virtual absl::StatusOr<v1::ListEventsResponse> ListEvents(
      const v1::ListEventsRequest& request) const = 0;
  // Errors as in job_service.proto.
  virtual absl::StatusOr<v1::Frontier> GetFrontier(const v1::GetFrontierRequest& request) const = 0;
  virtual absl::StatusOr<v1::Job> CancelJob(Now now, const v1::CancelJobRequest& request) = 0;

  // --- workers ---
  virtual absl::StatusOr<v1::RegisterWorkerResponse> RegisterWorker(
      Now now, const v1::RegisterWorkerRequest& request) = 0;
  // A lease if one can be given now; nullopt: the service waits for changed() and asks again until
  // the poll ends.
  virtual absl::StatusOr<std::optional<v1::Lease>> TryLease(Now now,
                                                            const std::string& session) = 0;
  virtual absl::StatusOr<v1::HeartbeatResponse> Heartbeat(Now now,
                                                          const v1::HeartbeatRequest& request) = 0;
  virtual absl::Status FinishTask(Now now, const v1::FinishTaskRequest& request) = 0;
  virtual absl::Status DrainWorker(Now now, const v1::DrainWorkerRequest& request) = 0;
  // OK when the attempt is live (before WriteShard accepts bytes and again before it commits them);
  // ABORTED: fenced.
  virtual absl::Status CheckAttempt(const std::string& session, const std::string& task,
                                    int64_t attempt) const = 0;
  // What a session may read: NOT_FOUND for an unknown session or job.
  virtual absl::StatusOr<v1::JobContext> ContextFor(const std::string& session,
                                                    const std::string& job) const = 0;

  // --- the service itself ---
  // Expired leases, lost workers, validation time-outs.
  virtual absl::Status Tick(Now now) = 0;
  // When Tick has something to do at the latest.
  virtual absl::Duration NextDeadline() const = 0;
  // Shards that become the artifact (of the final round, the decided variants), one per linear in
  // their order; empty before all are solved and decided. Of a job with source_job: those of that
  // job, in whose folder they lie.
  virtual absl::StatusOr<std::vector<v1::ShardSummary>> Shards(const std::string& job) const = 0;
  // The stored record (model path, token files, output path; for assembly). NOT_FOUND.
  virtual absl::StatusOr<v1::JobRecord> Record(const std::string& job) const = 0;
  // Before the rename: false when the job was cancelled meanwhile. Afterwards CancelJob answers
  // FAILED_PRECONDITION.
  virtual bool BeginRename(Now now, const std::string& job) = 0;
  virtual absl::Status FinishAssemble(Now now, const std::string& job,
                                      const absl::StatusOr<AssembleResult>& result) = 0;
  virtual std::vector<Action> TakeActions() = 0;
  // Grows with every change; WatchJob and LeaseTask wait on it.
  virtual int64_t changed() const = 0;
};

}  // namespace gradq
