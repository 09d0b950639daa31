#pragma once

// A worker's conversation with the coordinator: register, lease, heartbeat, finish, upload, drain.
// Shared by gradq-worker and gradq-inference; knows nothing of what a task does and links no
// libtorch.
//
// Threads: Run() occupies the caller's thread and calls LeaseHandler::Run on it (the compute
// thread); one thread of its own sends heartbeats. Everything else may be called from any thread.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/worker_service.grpc.pb.h"
#include "gradq/v1/worker_service.pb.h"
#include "lib/base/clock.h"
#include "services/rpc/file_stream.h"

namespace gradq {

struct SessionOptions {
  std::string coordinator;  // HOST:PORT
  bool insecure = false;
  v1::RegisterWorkerRequest registration;
  // How long the first registration may take; later ones are tried until drained.
  absl::Duration connect_timeout = absl::Seconds(60);
  absl::Duration poll = absl::Seconds(30);
  // How long a task that may finish during a drain gets before it is stopped too.
  absl::Duration drain_grace = absl::Seconds(20);
  // While a task runs, heartbeats come at least this often, so that progress and orders are fresh.
  absl::Duration busy_interval = absl::Seconds(1);
  const Clock* clock = &Clock::Real();
};

// One leased task while it runs; written by the compute thread and the heartbeat thread.
class Attempt {
 public:
  explicit Attempt(v1::Lease lease) : lease_(std::move(lease)) {}
  const v1::Lease& lease() const { return lease_; }
  // True once the work has lost its purpose (revoked, cancelled, lease not renewed, drain). Cheap.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  // Why it was stopped; empty while it was not.
  std::string stop_reason() const;
  void Stop(std::string_view reason);
  // Chunks appended so far and the SHA-256 of the last; goes out with the next heartbeat.
  void Progress(int chunks_done, std::string last_digest);
  v1::AttemptProgress progress() const;

 private:
  const v1::Lease lease_;
  std::atomic<bool> stopped_ = false;
  mutable std::mutex mutex_;
  std::string reason_;
  int chunks_done_ = 0;
  std::string last_digest_;
};

// What became of a task.
struct TaskOutcome {
  v1::FinishTaskRequest::Outcome outcome = v1::FinishTaskRequest::OUTCOME_UNSPECIFIED;
  absl::Status status;  // of a failure
  v1::TaskResult result;
  // INPUT_LOST: the streams that could not be read.
  std::vector<v1::StreamName> lost_inputs;
};

class LeaseHandler {
 public:
  virtual ~LeaseHandler() = default;
  // Compute thread. Returns soon after attempt.stopped() became true.
  virtual TaskOutcome Run(Attempt& attempt) = 0;
  // The task's end is recorded at the coordinator, or (`kept` false) its streams will never be
  // read: it failed, was stopped, or is fenced. Compute thread.
  virtual void Finished(const v1::Lease& /*lease*/, bool /*kept*/) {}
  // True when a drain should let the running task end by itself.
  virtual bool FinishesInDrain(const v1::Lease& /*lease*/) { return true; }
  // The coordinator does not know the session any more, nor any stream made in it. Compute thread.
  virtual void SessionLost() {}
  // Nothing to do for a whole poll. Compute thread.
  virtual void Idle() {}
  // Freed streams and accepted read tokens. Heartbeat thread; freed ones also on the compute
  // thread, before a task.
  virtual void Orders(const v1::HeartbeatResponse& /*response*/) {}
  // Fills in stream_bytes and spool_bytes. Heartbeat thread.
  virtual void DescribeStreams(v1::HeartbeatRequest* /*request*/) {}
};

class Session {
 public:
  // INVALID_ARGUMENT: address, or plaintext beyond loopback without `insecure`. Connects in Run.
  // `handler` must outlive the session.
  static absl::StatusOr<std::unique_ptr<Session>> Open(SessionOptions options,
                                                       LeaseHandler* handler);
  ~Session();

  // Registers and works until drained: OK. DEADLINE_EXCEEDED: no coordinator at first; another
  // error: the coordinator refused the registration.
  absl::Status Run();
  // No new leases; returns at once. A running task ends by itself (see FinishesInDrain) within
  // drain_grace, or is stopped and handed back.
  void Drain();
  bool draining() const { return draining_.load(); }

  // Uploads a shard for a running attempt and returns when it is durable. ABORTED: fenced.
  // DATA_LOSS, RESOURCE_EXHAUSTED (the coordinator's disk); UNAVAILABLE after a minute without an
  // answer; CANCELLED when the attempt was stopped.
  absl::Status WriteShard(const Attempt& attempt, std::string_view sha256, std::string_view bytes);
  // A durable shard of a job. Resumes after UNAVAILABLE for a minute. NOT_FOUND; DATA_LOSS;
  // CANCELLED when the attempt was stopped.
  absl::StatusOr<std::string> ReadShard(const Attempt& attempt, const std::string& sha256);
  // Reads of a job's model files and token blobs, for OpenRemoteFolder. Resumes after UNAVAILABLE
  // for a minute. The session must outlive it.
  FetchRange ModelReader(std::string job);

  // The session id given by the coordinator; empty before the first registration.
  std::string id() const;

 private:
  Session(SessionOptions options, LeaseHandler* handler)
      : options_(std::move(options)), handler_(handler) {}

  absl::Status Register(absl::Duration total);
  absl::StatusOr<std::optional<v1::Lease>> PollLease();
  void Execute(v1::Lease lease);
  bool Finish(const Attempt& attempt, const TaskOutcome& outcome);
  void HeartbeatLoop();
  // One heartbeat; false when it was not answered.
  bool Beat();
  void StopRunning(std::string_view reason);
  void StopWhenSilent();
  absl::Status UploadOnce(const Attempt& attempt, std::string_view sha256, std::string_view bytes);
  void AnnounceDrain();
  // Sleeps on the compute thread; false when the session ends meanwhile.
  bool Pause(absl::Duration duration);

  const SessionOptions options_;
  LeaseHandler* const handler_;
  std::unique_ptr<v1::WorkerService::Stub> control_;
  std::unique_ptr<v1::WorkerService::Stub> bulk_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::string id_;
  absl::Duration heartbeat_interval_ = absl::Seconds(10);
  absl::Duration lease_ttl_ = absl::Seconds(30);
  // Monotonic time just before the last answered request was sent: the lease runs from there.
  absl::Duration renewed_;
  // Shared with the compute thread's frame: the heartbeat thread may still look at it when it ends.
  std::shared_ptr<Attempt> running_;
  grpc::ClientContext* polling_ = nullptr;
  int64_t order_ = 0;  // of the last orders carried out in this session
  bool beat_now_ = false;
  bool silent_ = false;  // the last heartbeat was not answered; heartbeat thread only
  bool ended_ = false;
  std::atomic<bool> draining_ = false;
  absl::Duration drain_started_;
  std::thread heartbeat_;
};

}  // namespace gradq
