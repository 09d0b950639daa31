#pragma once

// A worker that speaks WorkerService and computes nothing but round-to-nearest: enough to take a
// job through the coordinator, and to misbehave.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/worker_service.grpc.pb.h"
#include "lib/base/files.h"

namespace gradq {

class FakeWorker {
 public:
  FakeWorker(std::shared_ptr<grpc::Channel> channel, std::string name,
             v1::Worker::Kind kind = v1::Worker::COMPUTE);

  absl::Status Register();
  // nullopt after `wait` without a lease.
  absl::StatusOr<std::optional<v1::Lease>> Lease(absl::Duration wait);
  absl::StatusOr<v1::HeartbeatResponse> Heartbeat(const v1::Lease* running = nullptr);
  absl::Status WriteShard(const v1::Lease& lease, const std::string& bytes,
                          const std::string& sha256);
  absl::Status Finish(const v1::Lease& lease, const v1::TaskResult& result,
                      v1::FinishTaskRequest::Outcome outcome = v1::FinishTaskRequest::SUCCEEDED);
  // The model folder of a job, read over the wire.
  absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenModel(const std::string& job);

  // Does what the lease asks for: a loss for the last stage, a rounded linear, a comparison.
  absl::Status Work(const v1::Lease& lease);
  // Leases and works until `done` or until nothing came for `wait`.
  absl::Status WorkUntilIdle(absl::Duration wait);

  const std::string& session() const { return session_; }
  v1::WorkerService::Stub& stub() { return *stub_; }

 private:
  absl::StatusOr<v1::TaskResult> Solve(const v1::Lease& lease);

  std::unique_ptr<v1::WorkerService::Stub> stub_;
  std::string name_;
  v1::Worker::Kind kind_;
  std::string session_;
};

}  // namespace gradq
