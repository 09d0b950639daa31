#pragma once

// The shapes of calls that the coordinator's services share, over gRPC's callback API: a unary call
// answered on an executor, a file sent piece by piece, a blob received piece by piece. A reactor
// deletes itself when gRPC is done with it.

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradq/v1/job_service.pb.h"
#include "lib/base/files.h"
#include "services/coordinator/blobs.h"
#include "services/coordinator/executor.h"
#include "services/rpc/status.h"

namespace gradq {

// A full queue: clients send again.
inline grpc::Status Busy() {
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "coordinator has too many calls queued");
}

// Answers with `work()` (absl::StatusOr<Response>), run on `executor`. Request and response live
// until then.
template <typename Response, typename Work>
grpc::ServerUnaryReactor* AnswerOn(Executor& executor, grpc::CallbackServerContext* context,
                                   Response* response, Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool posted = executor.Post([reactor, response, work = std::move(work)] {
    absl::StatusOr<Response> result = work();
    const absl::Status status = result.status();
    if (status.ok()) *response = *std::move(result);
    reactor->Finish(ToGrpc(status));
  });
  if (!posted) reactor->Finish(Busy());
  return reactor;
}

// What a file call sends: a listing, or a range of one file.
struct FileSource {
  std::vector<FolderEntry> listing;
  std::unique_ptr<RandomAccessFile> file;
  std::string name;
  int64_t offset = 0;
  int64_t length = 0;  // 0: to the end
};

// Sends FileChunks; a slow reader holds no thread.
class SendFileReactor : public grpc::ServerWriteReactor<v1::FileChunk> {
 public:
  using Open = std::function<absl::StatusOr<FileSource>()>;
  SendFileReactor(Executor& io, Open open);
  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void Post();
  void Step();

  Executor& io_;
  Open open_;
  bool opened_ = false;
  FileSource source_;
  int64_t end_ = 0;
  size_t next_entry_ = 0;
  bool sent_ = false;
  v1::FileChunk chunk_;
};

// Receives a blob whose first message announces it. `Request` has a field `data`.
template <typename Request>
class ReceiveBlobReactor : public grpc::ServerReadReactor<Request> {
 public:
  // From the first message: where the bytes go; nullopt: they are there already, answer at once.
  using Begin =
      std::function<absl::StatusOr<std::optional<BlobStore::Upload>>(const Request& first)>;
  // Makes the bytes durable.
  using Commit = std::function<absl::Status(BlobStore::Upload& upload)>;

  ReceiveBlobReactor(Executor& io, Begin begin, Commit commit)
      : io_(io), begin_(std::move(begin)), commit_(std::move(commit)) {
    this->StartRead(&request_);
  }
  void OnReadDone(bool ok) override {
    const bool posted = io_.Post([this, ok] { ok ? Take() : End(); });
    if (!posted) this->Finish(Busy());
  }
  void OnDone() override { delete this; }

 private:
  void Take() {
    const absl::Status status = Append();
    if (!status.ok() || present_) {
      Answer(status);
    } else {
      this->StartRead(&request_);
    }
  }
  absl::Status Append() {
    if (!upload_.has_value()) {
      auto upload = begin_(request_);
      if (!upload.ok()) return upload.status();
      present_ = !upload->has_value();
      if (present_) return absl::OkStatus();
      upload_.emplace(*std::move(*upload));
    }
    return upload_->Append(request_.data());
  }
  void End() {
    if (!upload_.has_value()) {
      Answer(absl::InvalidArgumentError("upload without a first message"));
      return;
    }
    Answer(commit_(*upload_));
  }
  // An answer finds no file of the upload left behind.
  void Answer(const absl::Status& status) {
    upload_.reset();
    this->Finish(ToGrpc(status));
  }

  Executor& io_;
  Begin begin_;
  Commit commit_;
  Request request_;
  std::optional<BlobStore::Upload> upload_;
  bool present_ = false;
};

}  // namespace gradq
