#pragma once

// A coordinator with its services on a loopback port, in this process, over real folders; and the
// client's side of the calls.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "gradq/v1/job_service.grpc.pb.h"
#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "services/coordinator/coordinator.h"
#include "services/coordinator/job_service.h"
#include "services/coordinator/worker_service.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "services/rpc/status.h"
#include "tests/base/temporary_folder.h"
#include "tests/services/fake_worker.h"

namespace gradq {

class CoordinatorFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    model_root_ = GRADQ_FIXTURES;
    output_root_ = temporary_ / "out";
    ASSERT_TRUE(MakeFolders(output_root_).ok());
    StartServer();
  }
  void TearDown() override { StopServer(); }

  void StartServer() {
    CoordinatorOptions options;
    options.data_dir = temporary_ / "data";
    options.model_root = model_root_;
    options.output_root = output_root_;
    options.core.lease_ttl = absl::Seconds(30);
    options.core.heartbeat_interval = absl::Seconds(10);
    options.core.retention = retention_;
    auto coordinator = Coordinator::Start(options);
    ASSERT_TRUE(coordinator.ok()) << coordinator.status();
    coordinator_ = *std::move(coordinator);
    jobs_service_ = std::make_unique<JobServiceImpl>(coordinator_.get());
    worker_service_ = std::make_unique<WorkerServiceImpl>(coordinator_.get());
    auto server = RpcServer::Start({}, {jobs_service_.get(), worker_service_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = *Dial(server_->address(), {});
    jobs_ = v1::JobService::NewStub(channel_);
  }
  void StopServer() {
    if (coordinator_ == nullptr) return;
    coordinator_->BeginShutdown();
    server_->Shutdown(absl::Seconds(5));
    coordinator_.reset();
  }

  // A unary call of JobService with a deadline.
  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(grpc::Status (v1::JobService::Stub::*method)(grpc::ClientContext*,
                                                                             const Request&,
                                                                             Response*),
                                const Request& request) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(30));
    Response response;
    const absl::Status status = FromGrpc((jobs_.get()->*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  absl::Status Upload(const std::string& content, const std::string& sha256) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(30));
    v1::UploadBlobResponse response;
    const auto writer = jobs_->UploadBlob(&context, &response);
    v1::UploadBlobRequest request;
    request.set_sha256(sha256);
    request.set_size(static_cast<int64_t>(content.size()));
    bool open = writer->Write(request);
    request.Clear();
    for (size_t at = 0; open && at < content.size(); at += 65536) {
      request.set_data(content.substr(at, 65536));
      open = writer->Write(request);
    }
    writer->WritesDone();
    return FromGrpc(writer->Finish());
  }
  std::string MustUpload(const std::string& content) {
    const std::string sha256 = Sha256Hex(content);
    const absl::Status status = Upload(content, sha256);
    EXPECT_TRUE(status.ok()) << status;
    return sha256;
  }
  std::string FixtureText(const std::string& name) {
    return *ReadFile(std::string(GRADQ_FIXTURES) + "/tiny-llama/" + name);
  }

  // A small job that passes every check.
  v1::JobSpec Spec(const std::string& output = "artifact") {
    v1::JobSpec spec;
    spec.set_model("tiny-llama");
    spec.set_calibration_blob(MustUpload(FixtureText("calibration.txt")));
    spec.set_output(output);
    spec.set_sequences(4);
    spec.set_length(64);
    spec.set_chunk_sequences(2);
    return spec;
  }
  absl::StatusOr<v1::Job> Create(const v1::JobSpec& spec, const std::string& request_id = "",
                                 bool validate_only = false) {
    v1::CreateJobRequest request;
    *request.mutable_spec() = spec;
    request.set_request_id(request_id);
    request.set_validate_only(validate_only);
    return Call(&v1::JobService::Stub::CreateJob, request);
  }
  absl::StatusOr<v1::Job> Get(const std::string& name) {
    v1::GetJobRequest request;
    request.set_name(name);
    return Call(&v1::JobService::Stub::GetJob, request);
  }
  absl::StatusOr<v1::Job> Cancel(const std::string& name) {
    v1::CancelJobRequest request;
    request.set_name(name);
    return Call(&v1::JobService::Stub::CancelJob, request);
  }
  size_t CountJobs() {
    return Call(&v1::JobService::Stub::ListJobs, v1::ListJobsRequest())->jobs_size();
  }
  // Waits with WatchJob for a terminal state.
  absl::StatusOr<v1::Job> WaitForEnd(const std::string& name) {
    v1::WatchJobRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(30));
    const auto reader = jobs_->WatchJob(&context, request);
    v1::Job job;
    while (reader->Read(&job)) {
    }
    const absl::Status status = FromGrpc(reader->Finish());
    if (!status.ok()) return status;
    return job;
  }
  std::string Output(const std::string& name = "artifact") { return output_root_ + "/" + name; }

  TemporaryFolder temporary_;
  std::string model_root_;
  std::string output_root_;
  absl::Duration retention_ = absl::Hours(1);
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<JobServiceImpl> jobs_service_;
  std::unique_ptr<WorkerServiceImpl> worker_service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
};

}  // namespace gradq
