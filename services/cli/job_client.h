#pragma once

// JobService as the CLI uses it: every call has a deadline and resends on UNAVAILABLE. One caller
// at a time, except Cancel.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/job_service.grpc.pb.h"

namespace gradq {

class JobClient {
 public:
  // DEADLINE_EXCEEDED naming the target when nothing answers within `timeout`.
  static absl::StatusOr<JobClient> Connect(const std::string& target, bool insecure,
                                           absl::Duration timeout);

  // Uploads a text file unless the coordinator has it; the result is its SHA-256.
  absl::StatusOr<std::string> UploadFile(const std::string& path);
  absl::StatusOr<v1::Job> Create(const v1::JobSpec& spec, const std::string& request_id);
  absl::StatusOr<v1::PlanJobResponse> Plan(const v1::JobSpec& spec, int workers);
  absl::StatusOr<v1::Job> Get(const std::string& name);
  absl::StatusOr<v1::Job> Cancel(const std::string& name);
  absl::StatusOr<v1::ListJobsResponse> List(const v1::ListJobsRequest& request);
  // All tasks of a job.
  absl::StatusOr<std::vector<v1::Task>> Tasks(const std::string& job);
  absl::StatusOr<v1::ListWorkersResponse> Workers();

  // Bits against loss of a job with mixed widths; `max_points` 0: the coordinator's choice.
  absl::StatusOr<v1::Frontier> Frontier(const std::string& name, int max_points);

  // Follows a job to a terminal state, through restarts of the coordinator. `update` sees each
  // change; returning false ends the watch. `idle` is called at least every 200 ms; returning an
  // error ends the watch with it.
  absl::StatusOr<v1::Job> Watch(const std::string& name,
                                const std::function<bool(const v1::Job&)>& update,
                                const std::function<absl::Status()>& idle);

  // Every file of the artifact into `folder`, verified. ALREADY_EXISTS unless `replace`.
  absl::Status Download(const std::string& name, const std::string& folder, bool replace);

 private:
  explicit JobClient(std::shared_ptr<grpc::Channel> channel);
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::JobService::Stub> stub_;
};

bool IsTerminal(v1::Job::State state);
// A random UUID (version 4) for request_id.
std::string NewRequestId();

}  // namespace gradq
