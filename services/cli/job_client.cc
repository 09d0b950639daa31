#include "services/cli/job_client.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/channel.h"
#include "services/rpc/file_stream.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(30);
// Admission reads every weight of the model once.
constexpr absl::Duration kCreateTimeout = absl::Minutes(30);
constexpr absl::Duration kRetryTotal = absl::Seconds(20);

// One unary call with deadline and resends; `call` is stub->Method.
template <typename Response, typename Request, typename Call>
absl::StatusOr<Response> Unary(const Request& request, absl::Duration timeout, Call call) {
  Response response;
  GRADQ_RETURN_IF_ERROR(RetryUnavailable(
      kRetryTotal, [] { return false; },
      [&] {
        grpc::ClientContext context;
        SetDeadline(context, timeout);
        response.Clear();
        return FromGrpc(call(&context, request, &response));
      }));
  return response;
}

// Reads a WatchJob stream on its own thread, so that the caller can look after its children
// meanwhile.
class JobUpdates {
 public:
  JobUpdates(v1::JobService::Stub& stub, const std::string& name, int64_t after_revision) {
    v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_revision(after_revision);
    reader_ = stub.WatchJob(&context_, request);
    thread_ = std::thread([this] {
      v1::Job job;
      while (reader_->Read(&job)) {
        std::lock_guard lock(mutex_);
        jobs_.push_back(job);
        changed_.notify_one();
      }
      const absl::Status status = FromGrpc(reader_->Finish());
      std::lock_guard lock(mutex_);
      end_ = status;
      changed_.notify_one();
    });
  }
  ~JobUpdates() {
    context_.TryCancel();
    thread_.join();
  }

  // The next update, or nothing after `timeout`; the stream's final status once it has ended.
  absl::StatusOr<std::optional<v1::Job>> Next(absl::Duration timeout) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout),
                      [&] { return !jobs_.empty() || end_.has_value(); });
    if (!jobs_.empty()) {
      std::optional<v1::Job> job = std::move(jobs_.front());
      jobs_.pop_front();
      return job;
    }
    if (end_.has_value()) return end_->ok() ? absl::OutOfRangeError("watch ended") : *end_;
    return std::nullopt;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::Job>> reader_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::Job> jobs_;
  std::optional<absl::Status> end_;
  std::thread thread_;
};

}  // namespace

bool IsTerminal(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

std::string NewRequestId() {
  std::random_device random;
  std::string bytes(16, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  bytes[6] = static_cast<char>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<char>((bytes[8] & 0x3f) | 0x80);
  const std::string hex = absl::BytesToHexString(bytes);
  return StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                hex.substr(16, 4), "-", hex.substr(20));
}

JobClient::JobClient(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)), stub_(v1::JobService::NewStub(channel_)) {}

absl::StatusOr<JobClient> JobClient::Connect(const std::string& target, bool insecure,
                                             absl::Duration timeout) {
  GRADQ_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel,
                         Dial(target, {.insecure = insecure}));
  GRADQ_RETURN_IF_ERROR(WaitConnected(*channel, target, timeout));
  return JobClient(std::move(channel));
}

absl::StatusOr<std::string> JobClient::UploadFile(const std::string& path) {
  GRADQ_ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  const std::string digest = Sha256Hex(content);
  GRADQ_RETURN_IF_ERROR(RetryUnavailable(
      kRetryTotal, [] { return false; },
      [&] {
        grpc::ClientContext context;
        SetDeadline(context, absl::Minutes(10));
        v1::UploadBlobResponse response;
        const auto writer = stub_->UploadBlob(&context, &response);
        v1::UploadBlobRequest request;
        request.set_sha256(digest);
        request.set_size(static_cast<int64_t>(content.size()));
        // A failed write means that the server has answered already (it has the blob, or refuses
        // it): Finish tells which.
        bool open = writer->Write(request);
        for (size_t offset = 0; open && offset < content.size(); offset += kMessageBytes) {
          request.Clear();
          request.set_data(content.substr(offset, kMessageBytes));
          open = writer->Write(request);
        }
        writer->WritesDone();
        return FromGrpc(writer->Finish());
      }));
  return digest;
}

absl::StatusOr<v1::Job> JobClient::Create(const v1::JobSpec& spec, const std::string& request_id) {
  v1::CreateJobRequest request;
  *request.mutable_spec() = spec;
  request.set_request_id(request_id);
  return Unary<v1::Job>(request, kCreateTimeout,
                        [&](auto... arguments) { return stub_->CreateJob(arguments...); });
}

absl::StatusOr<v1::PlanJobResponse> JobClient::Plan(const v1::JobSpec& spec, int workers) {
  v1::PlanJobRequest request;
  *request.mutable_spec() = spec;
  request.set_workers(workers);
  return Unary<v1::PlanJobResponse>(
      request, kCreateTimeout, [&](auto... arguments) { return stub_->PlanJob(arguments...); });
}

absl::StatusOr<v1::Job> JobClient::Get(const std::string& name) {
  v1::GetJobRequest request;
  request.set_name(name);
  return Unary<v1::Job>(request, kCallTimeout,
                        [&](auto... arguments) { return stub_->GetJob(arguments...); });
}

absl::StatusOr<v1::Job> JobClient::Cancel(const std::string& name) {
  v1::CancelJobRequest request;
  request.set_name(name);
  return Unary<v1::Job>(request, kCallTimeout,
                        [&](auto... arguments) { return stub_->CancelJob(arguments...); });
}

absl::StatusOr<v1::ListJobsResponse> JobClient::List(const v1::ListJobsRequest& request) {
  return Unary<v1::ListJobsResponse>(
      request, kCallTimeout, [&](auto... arguments) { return stub_->ListJobs(arguments...); });
}

absl::StatusOr<std::vector<v1::Task>> JobClient::Tasks(const std::string& job) {
  std::vector<v1::Task> tasks;
  v1::ListTasksRequest request;
  request.set_parent(job);
  request.set_page_size(1000);
  do {
    GRADQ_ASSIGN_OR_RETURN(
        v1::ListTasksResponse response,
        Unary<v1::ListTasksResponse>(request, kCallTimeout, [&](auto... arguments) {
          return stub_->ListTasks(arguments...);
        }));
    for (v1::Task& task : *response.mutable_tasks()) tasks.push_back(std::move(task));
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return tasks;
}

absl::StatusOr<v1::ListWorkersResponse> JobClient::Workers() {
  v1::ListWorkersRequest request;
  request.set_page_size(1000);
  return Unary<v1::ListWorkersResponse>(
      request, kCallTimeout, [&](auto... arguments) { return stub_->ListWorkers(arguments...); });
}

absl::StatusOr<v1::Frontier> JobClient::Frontier(const std::string& name, int max_points) {
  v1::GetFrontierRequest request;
  request.set_name(name);
  request.set_max_points(max_points);
  return Unary<v1::Frontier>(request, kCallTimeout,
                             [&](auto... arguments) { return stub_->GetFrontier(arguments...); });
}

absl::StatusOr<v1::Job> JobClient::Watch(const std::string& name,
                                         const std::function<bool(const v1::Job&)>& update,
                                         const std::function<absl::Status()>& idle) {
  constexpr absl::Duration kIdle = absl::Milliseconds(200);
  int64_t revision = 0;
  absl::Time last_answer = absl::Now();
  while (true) {
    JobUpdates updates(*stub_, name, revision);
    while (true) {
      GRADQ_RETURN_IF_ERROR(idle());
      const absl::StatusOr<std::optional<v1::Job>> next = updates.Next(kIdle);
      if (!next.ok()) {
        const absl::StatusCode code = next.status().code();
        const bool resend =
            code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kOutOfRange;
        if (!resend || absl::Now() - last_answer > kRetryTotal) return next.status();
        absl::SleepFor(kIdle);
        break;
      }
      if (!next->has_value()) continue;
      const v1::Job& job = **next;
      last_answer = absl::Now();
      revision = job.revision();
      if (!update(job) || IsTerminal(job.state())) return job;
    }
  }
}

absl::Status JobClient::Download(const std::string& name, const std::string& folder, bool replace) {
  const FetchRange fetch =
      [&](const std::string& file, int64_t offset, int64_t length,
          absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) -> absl::Status {
    grpc::ClientContext context;
    SetDeadline(context, absl::Hours(1));
    v1::DownloadArtifactRequest request;
    request.set_name(name);
    request.set_file(file);
    request.set_offset(offset);
    const auto reader = stub_->DownloadArtifact(&context, request);
    v1::FileChunk chunk;
    int64_t received = 0;
    while ((length == 0 || received < length) && reader->Read(&chunk)) {
      received += static_cast<int64_t>(chunk.data().size());
      if (absl::Status status = receive(chunk); !status.ok()) {
        context.TryCancel();
        return status;
      }
    }
    if (length != 0 && received >= length) context.TryCancel();
    const absl::Status status = FromGrpc(reader->Finish());
    return length != 0 && received >= length ? absl::OkStatus() : status;
  };
  GRADQ_ASSIGN_OR_RETURN(const auto remote, OpenRemoteFolder(name, fetch));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, remote->List());
  GRADQ_ASSIGN_OR_RETURN(AtomicFolder target, AtomicFolder::Create(folder, replace));
  for (const FolderEntry& entry : entries) {
    GRADQ_ASSIGN_OR_RETURN(const auto file, remote->Open(entry.name));
    GRADQ_ASSIGN_OR_RETURN(FileWriter writer,
                           FileWriter::Create(StrCat(target.staging(), "/", entry.name)));
    std::vector<std::byte> buffer(
        static_cast<size_t>(std::min<int64_t>(entry.size, 16 * kMessageBytes)));
    for (int64_t offset = 0; offset < entry.size; offset += static_cast<int64_t>(buffer.size())) {
      const auto part = std::span(buffer).first(static_cast<size_t>(
          std::min<int64_t>(static_cast<int64_t>(buffer.size()), entry.size - offset)));
      GRADQ_RETURN_IF_ERROR(file->Read(offset, part));
      GRADQ_RETURN_IF_ERROR(writer.Append(part));
    }
    GRADQ_RETURN_IF_ERROR(writer.Finish());
  }
  return target.Commit();
}

}  // namespace gradq
