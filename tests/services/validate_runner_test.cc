// A Validate task from lease to result, against a coordinator that serves just what it needs.

#include "services/inference_worker/validate_runner.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/checkpoint.h"
#include "lib/inference/scoring.h"
#include "lib/tokenizer/tokenizer.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "services/rpc/status.h"
#include "tests/inference/quantized_folder.h"

namespace gradq {
namespace {

constexpr int64_t kLength = 64;
constexpr int64_t kWindows = 20;
constexpr const char* kJob = "jobs/1";

// Gives one lease and takes one result; model and artifact come from folders of this machine.
class OneTaskCoordinator : public v1::WorkerService::Service, public v1::JobService::Service {
 public:
  v1::Lease lease;
  std::string model, artifact;  // folders behind ReadModel and DownloadArtifact
  std::string tokens;           // bytes of the evaluation tokens
  std::atomic<bool> revoke = false;
  std::atomic<int> model_reads = 0, artifact_reads = 0;

  grpc::Status RegisterWorker(grpc::ServerContext*, const v1::RegisterWorkerRequest* request,
                              v1::RegisterWorkerResponse* response) override {
    EXPECT_EQ(request->kind(), v1::Worker::INFERENCE);
    response->set_session("s1");
    response->mutable_heartbeat_interval()->set_nanos(20'000'000);
    response->mutable_lease_ttl()->set_seconds(10);
    return grpc::Status::OK;
  }
  grpc::Status LeaseTask(grpc::ServerContext*, const v1::LeaseTaskRequest*,
                         v1::LeaseTaskResponse* response) override {
    std::unique_lock lock(mutex_);
    if (!leased_) {
      leased_ = true;
      *response->mutable_lease() = lease;
      return grpc::Status::OK;
    }
    changed_.wait_for(lock, std::chrono::milliseconds(50));
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* response) override {
    if (revoke) *response->mutable_revoked() = request->running();
    return grpc::Status::OK;
  }
  grpc::Status FinishTask(grpc::ServerContext*, const v1::FinishTaskRequest* request,
                          v1::FinishTaskResponse*) override {
    std::lock_guard lock(mutex_);
    finished_ = *request;
    done_ = true;
    changed_.notify_all();
    return grpc::Status::OK;
  }
  grpc::Status DrainWorker(grpc::ServerContext*, const v1::DrainWorkerRequest*,
                           v1::DrainWorkerResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status ReadModel(grpc::ServerContext*, const v1::ReadModelRequest* request,
                         grpc::ServerWriter<v1::FileChunk>* writer) override {
    const auto send = [&](const v1::FileChunk& chunk) { return writer->Write(chunk); };
    if (request->file() == "tokens") {
      const auto file = OpenLocalFile(tokens);
      return ToGrpc(SendFile(**file, "tokens", request->offset(), request->length(), send));
    }
    ++model_reads;
    const auto folder = OpenLocalFolder(model);
    if (request->file().empty()) return ToGrpc(SendListing(**folder, send));
    const auto file = (*folder)->Open(request->file());
    if (!file.ok()) return ToGrpc(file.status());
    return ToGrpc(SendFile(**file, request->file(), request->offset(), request->length(), send));
  }
  grpc::Status DownloadArtifact(grpc::ServerContext*, const v1::DownloadArtifactRequest* request,
                                grpc::ServerWriter<v1::FileChunk>* writer) override {
    EXPECT_EQ(request->name(), kJob);
    const auto send = [&](const v1::FileChunk& chunk) { return writer->Write(chunk); };
    const auto folder = OpenLocalFolder(artifact);
    if (request->file().empty()) return ToGrpc(SendListing(**folder, send));
    if (request->file() != "gradq.json") ++artifact_reads;
    const auto file = (*folder)->Open(request->file());
    if (!file.ok()) return ToGrpc(file.status());
    return ToGrpc(SendFile(**file, request->file(), request->offset(), 0, send));
  }

  v1::FinishTaskRequest WaitForResult() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return done_; }));
    return finished_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool leased_ = false, done_ = false;
  v1::FinishTaskRequest finished_;
};

class ValidateRunnerTest : public testing::Test {
 protected:
  ValidateRunnerTest() {
    WriteQuantizedFolder(model_, {.bits = 4}, folder_.path() + "/artifact");
    coordinator_.model = model_;
    coordinator_.artifact = folder_.path() + "/artifact";
    coordinator_.tokens = folder_.path() + "/tokens";
    const auto tokenizer = Tokenizer::Open(*ReadFile(model_ + "/tokenizer.json"));
    const auto ids = (*tokenizer)->Encode(*ReadFile(model_ + "/validation.txt"));
    windows_ = *CutWindows(*ids, kLength, kWindows, (*tokenizer)->vocab_size());
    std::string bytes(windows_.size() * sizeof(int32_t), 0);
    std::memcpy(bytes.data(), windows_.data(), bytes.size());
    GRADQ_CHECK(WriteFileAtomically(coordinator_.tokens, bytes).ok());

    v1::Lease& lease = coordinator_.lease;
    lease.set_task(StrCat(kJob, "/tasks/validate"));
    lease.set_attempt(1);
    lease.mutable_spec()->mutable_validate();
    v1::JobContext& job = *lease.mutable_job();
    job.set_name(kJob);
    job.set_model_path(model_);
    job.set_model_digest((*Checkpoint::Open(OpenFolderOrDie(model_)))->layout_digest());
    job.set_evaluation_tokens("tokens");
    job.set_evaluation_sequences(kWindows);
    job.mutable_plan()->set_length(kLength);
    job.set_artifact_path(coordinator_.artifact);
  }

  v1::FinishTaskRequest RunTask() {
    const auto server =
        RpcServer::Start({}, {static_cast<v1::WorkerService::Service*>(&coordinator_),
                              static_cast<v1::JobService::Service*>(&coordinator_)});
    GRADQ_CHECK(server.ok());
    const auto compute = ComputeThread::Start(2, "cpu");
    ValidateRunner runner(*Dial((*server)->address(), {.bulk = true}), compute->get());
    SessionOptions options;
    options.coordinator = (*server)->address();
    options.registration.set_name("i1");
    options.registration.set_kind(v1::Worker::INFERENCE);
    const auto session = Session::Open(options, &runner);
    runner.Attach(session->get());
    std::thread loop([&] { EXPECT_TRUE((*session)->Run().ok()); });
    const v1::FinishTaskRequest result = coordinator_.WaitForResult();
    (*session)->Drain();
    loop.join();
    return result;
  }

  void ExpectComparison(const v1::FinishTaskRequest& result) {
    ASSERT_EQ(result.outcome(), v1::FinishTaskRequest::SUCCEEDED) << result.message();
    const auto model = Model::Load(*OpenFolderOrDie(folder_.path() + "/artifact"), {});
    const auto reference = Model::Load(*OpenFolderOrDie(model_), {});
    const auto expected = CompareWindows(**model, **reference, windows_, kLength, nullptr, {});
    const v1::Comparison& comparison = result.result().comparison();
    EXPECT_NEAR(comparison.perplexity(), expected->perplexity, 1e-6);
    EXPECT_NEAR(comparison.reference_perplexity(), expected->reference_perplexity, 1e-6);
    EXPECT_NEAR(comparison.kl(), expected->kl, 1e-7);
    EXPECT_EQ(comparison.tokens(), kWindows * (kLength - 1));
    EXPECT_GT(result.result().compute_seconds(), 0);
  }

  const std::string model_ = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  const TestFolder folder_;
  std::vector<int32_t> windows_;
  OneTaskCoordinator coordinator_;
};

TEST_F(ValidateRunnerTest, ReadsLocalFoldersWhereTheyAreTheSame) {
  ExpectComparison(RunTask());
  EXPECT_EQ(coordinator_.model_reads, 0);
  EXPECT_EQ(coordinator_.artifact_reads, 0);
}

TEST_F(ValidateRunnerTest, ReadsThroughTheCoordinatorWithoutSharedFiles) {
  coordinator_.lease.mutable_job()->set_model_path("/elsewhere/model");
  coordinator_.lease.mutable_job()->set_artifact_path("/elsewhere/artifact");
  ExpectComparison(RunTask());
  EXPECT_GT(coordinator_.model_reads, 0);
  EXPECT_GT(coordinator_.artifact_reads, 0);
}

TEST_F(ValidateRunnerTest, OtherFilesAtTheSamePathsAreNotUsed) {
  const std::string other = folder_.path() + "/other";
  WriteQuantizedFolder(model_, {.bits = 2}, other);
  coordinator_.lease.mutable_job()->set_artifact_path(other);
  coordinator_.lease.mutable_job()->set_model_path(StrCat(GRADQ_FIXTURES, "/docs-llama-6m"));
  ExpectComparison(RunTask());
  EXPECT_GT(coordinator_.model_reads, 0);
  EXPECT_GT(coordinator_.artifact_reads, 0);
}

TEST_F(ValidateRunnerTest, FewerTokensThanWindowsFail) {
  coordinator_.lease.mutable_job()->set_evaluation_sequences(kWindows + 1);
  EXPECT_EQ(RunTask().outcome(), v1::FinishTaskRequest::FAILED_FATAL);
}

TEST_F(ValidateRunnerTest, OnlyValidates) {
  coordinator_.lease.mutable_spec()->mutable_solve_linear();
  EXPECT_EQ(RunTask().outcome(), v1::FinishTaskRequest::FAILED_FATAL);
}

TEST_F(ValidateRunnerTest, StopsWhenRevoked) {
  // Long enough that the first heartbeat comes in between.
  std::string bytes = *ReadFile(coordinator_.tokens);
  std::string many;
  for (int i = 0; i < 200; ++i) many += bytes;
  std::filesystem::remove(coordinator_.tokens);
  GRADQ_CHECK(WriteFileAtomically(coordinator_.tokens, many).ok());
  coordinator_.lease.mutable_job()->set_evaluation_sequences(200 * kWindows);
  coordinator_.revoke = true;
  EXPECT_EQ(RunTask().outcome(), v1::FinishTaskRequest::STOPPED);
}

}  // namespace
}  // namespace gradq
