#include "services/coordinator/worker_service.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "google/protobuf/util/time_util.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/coordinator/job_names.h"
#include "services/coordinator/reactors.h"

namespace gradq {
namespace {

constexpr absl::Duration kLongestPoll = absl::Seconds(60);
constexpr int64_t kMaxShardBytes = int64_t{1} << 34;

// One LeaseTask call. Only the notifier's thread answers; gRPC's callbacks only leave a mark.
class LeaseReactor : public grpc::ServerUnaryReactor {
 public:
  static LeaseReactor* Start(Coordinator* coordinator, const v1::LeaseTaskRequest* request,
                             v1::LeaseTaskResponse* response) {
    std::shared_ptr<LeaseReactor> reactor(new LeaseReactor(coordinator, request, response));
    reactor->self_ = reactor;
    coordinator->notifier().Add([reactor](bool stopping) { return reactor->Poll(stopping); });
    return reactor.get();
  }

  void OnCancel() override {
    cancelled_ = true;
    coordinator_.notifier().Poke();
  }
  void OnDone() override { const std::shared_ptr<LeaseReactor> self = std::move(self_); }

 private:
  LeaseReactor(Coordinator* coordinator, const v1::LeaseTaskRequest* request,
               v1::LeaseTaskResponse* response)
      : coordinator_(*coordinator), session_(request->session()), response_(response) {
    const auto wait = absl::Milliseconds(
        google::protobuf::util::TimeUtil::DurationToMilliseconds(request->wait()));
    end_ = coordinator->clock().Monotonic() + std::clamp(wait, absl::ZeroDuration(), kLongestPoll);
  }

  std::optional<absl::Duration> Poll(bool stopping) {
    // A lease given to a caller that is gone would block its task for a whole TTL.
    if (cancelled_) return Answer(absl::CancelledError("worker is gone"));
    if (stopping) return Answer(absl::UnavailableError("coordinator is shutting down"));
    absl::StatusOr<std::optional<v1::Lease>> lease = coordinator_.WithCore(
        [&](CoordinatorCore& core, Now now) { return core.TryLease(now, session_); });
    if (!lease.ok()) return Answer(lease.status());
    if (lease->has_value()) {
      *response_->mutable_lease() = **std::move(lease);
      return Answer(absl::OkStatus());
    }
    if (coordinator_.clock().Monotonic() >= end_) return Answer(absl::OkStatus());
    return end_;
  }

  std::optional<absl::Duration> Answer(const absl::Status& status) {
    Finish(ToGrpc(status));
    return std::nullopt;
  }

  Coordinator& coordinator_;
  const std::string session_;
  v1::LeaseTaskResponse* const response_;
  absl::Duration end_;
  std::atomic<bool> cancelled_ = false;
  // Kept by gRPC's side until OnDone; the notifier's function holds another reference.
  std::shared_ptr<LeaseReactor> self_;
};

}  // namespace

grpc::ServerUnaryReactor* WorkerServiceImpl::RegisterWorker(
    grpc::CallbackServerContext* context, const v1::RegisterWorkerRequest* request,
    v1::RegisterWorkerResponse* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now now) { return core.RegisterWorker(now, *request); });
  });
}

grpc::ServerUnaryReactor* WorkerServiceImpl::LeaseTask(grpc::CallbackServerContext*,
                                                       const v1::LeaseTaskRequest* request,
                                                       v1::LeaseTaskResponse* response) {
  return LeaseReactor::Start(&coordinator_, request, response);
}

grpc::ServerUnaryReactor* WorkerServiceImpl::Heartbeat(grpc::CallbackServerContext* context,
                                                       const v1::HeartbeatRequest* request,
                                                       v1::HeartbeatResponse* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now now) { return core.Heartbeat(now, *request); });
  });
}

grpc::ServerUnaryReactor* WorkerServiceImpl::FinishTask(grpc::CallbackServerContext* context,
                                                        const v1::FinishTaskRequest* request,
                                                        v1::FinishTaskResponse* response) {
  return AnswerOn(
      coordinator_.control(), context, response,
      [this, request]() -> absl::StatusOr<v1::FinishTaskResponse> {
        GRADQ_RETURN_IF_ERROR(coordinator_.WithCore(
            [&](CoordinatorCore& core, Now now) { return core.FinishTask(now, *request); }));
        return v1::FinishTaskResponse();
      });
}

grpc::ServerUnaryReactor* WorkerServiceImpl::DrainWorker(grpc::CallbackServerContext* context,
                                                         const v1::DrainWorkerRequest* request,
                                                         v1::DrainWorkerResponse* response) {
  return AnswerOn(
      coordinator_.control(), context, response,
      [this, request]() -> absl::StatusOr<v1::DrainWorkerResponse> {
        GRADQ_RETURN_IF_ERROR(coordinator_.WithCore(
            [&](CoordinatorCore& core, Now now) { return core.DrainWorker(now, *request); }));
        return v1::DrainWorkerResponse();
      });
}

grpc::ServerWriteReactor<v1::FileChunk>* WorkerServiceImpl::ReadModel(
    grpc::CallbackServerContext*, const v1::ReadModelRequest* request) {
  return new SendFileReactor(coordinator_.io(), [this, request]() -> absl::StatusOr<FileSource> {
    GRADQ_ASSIGN_OR_RETURN(const v1::JobContext context,
                           coordinator_.WithCore([&](CoordinatorCore& core, Now) {
                             return core.ContextFor(request->session(), request->job());
                           }));
    FileSource source;
    if (request->file().empty()) {
      GRADQ_ASSIGN_OR_RETURN(source.listing, coordinator_.ListModelFiles(context));
      return source;
    }
    GRADQ_ASSIGN_OR_RETURN(source.file, coordinator_.OpenModelFile(context, request->file()));
    source.name = request->file();
    source.offset = request->offset();
    source.length = request->length();
    return source;
  });
}

grpc::ServerWriteReactor<v1::FileChunk>* WorkerServiceImpl::ReadShard(
    grpc::CallbackServerContext*, const v1::ReadShardRequest* request) {
  return new SendFileReactor(coordinator_.io(), [this, request]() -> absl::StatusOr<FileSource> {
    GRADQ_RETURN_IF_ERROR(coordinator_
                              .WithCore([&](CoordinatorCore& core, Now) {
                                return core.ContextFor(request->session(), request->job());
                              })
                              .status());
    GRADQ_ASSIGN_OR_RETURN(const BlobStore shards, coordinator_.ShardsOf(request->job()));
    FileSource source;
    GRADQ_ASSIGN_OR_RETURN(source.file, shards.OpenBlob(request->sha256()));
    source.name = request->sha256();
    source.offset = request->offset();
    return source;
  });
}

grpc::ServerReadReactor<v1::WriteShardRequest>* WorkerServiceImpl::WriteShard(
    grpc::CallbackServerContext*, v1::WriteShardResponse* response) {
  // The first message names the attempt; it is checked again when the bytes are complete.
  struct Attempt {
    std::string session;
    std::string task;
    int64_t number = 0;
  };
  auto attempt = std::make_shared<Attempt>();  // shared by the two functions below
  const auto check = [this, attempt] {
    return coordinator_.WithCore([&](CoordinatorCore& core, Now) {
      return core.CheckAttempt(attempt->session, attempt->task, attempt->number);
    });
  };
  const auto begin =
      [this, attempt, check, response](
          const v1::WriteShardRequest& first) -> absl::StatusOr<std::optional<BlobStore::Upload>> {
    *attempt = {first.session(), first.task(), first.attempt()};
    GRADQ_RETURN_IF_ERROR(check());
    if (first.size() > kMaxShardBytes) {
      return absl::InvalidArgumentError(
          StrCat("shard larger than the limit: ", first.size(), " bytes, ", kMaxShardBytes));
    }
    response->set_sha256(first.sha256());
    GRADQ_ASSIGN_OR_RETURN(const BlobStore shards, coordinator_.ShardsOf(JobOfTask(first.task())));
    if (shards.Has(first.sha256())) return std::nullopt;
    GRADQ_ASSIGN_OR_RETURN(BlobStore::Upload upload, shards.Begin(first.sha256(), first.size()));
    return std::optional(std::move(upload));
  };
  const auto commit = [check](BlobStore::Upload& upload) -> absl::Status {
    GRADQ_RETURN_IF_ERROR(check());
    return upload.Commit();
  };
  return new ReceiveBlobReactor<v1::WriteShardRequest>(coordinator_.io(), begin, commit);
}

}  // namespace gradq
