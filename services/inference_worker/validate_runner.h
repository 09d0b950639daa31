#pragma once

// Validate tasks of a coordinator's jobs: the artifact against the original on the job's evaluation
// windows. Model files are read from the coordinator's paths where this machine has the same files
// there, else over RPC. The network and the session run on the task loop's thread, tensors on the
// compute thread.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "gradq/v1/job_service.grpc.pb.h"
#include "lib/base/files.h"
#include "services/inference_worker/compute_thread.h"
#include "services/worker/session.h"

namespace gradq {

class ValidateRunner : public LeaseHandler {
 public:
  // `jobs`: the coordinator's JobService. `compute` must outlive this.
  ValidateRunner(std::shared_ptr<grpc::Channel> jobs, ComputeThread* compute);
  // The session whose handler this is; before Session::Run.
  void Attach(Session* session) { session_ = session; }

  TaskOutcome Run(Attempt& attempt) override;

 private:
  absl::StatusOr<v1::Comparison> Validate(Attempt& attempt);
  absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenOriginal(const v1::JobContext& context);
  absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenArtifact(const Attempt& attempt);

  const std::shared_ptr<v1::JobService::Stub> jobs_;
  ComputeThread* const compute_;
  Session* session_ = nullptr;
};

}  // namespace gradq
