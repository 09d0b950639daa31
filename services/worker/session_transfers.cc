// Session's bulk transfers: shards up and down, model files down.

#include <grpcpp/client_context.h>

#include <algorithm>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "services/worker/session.h"
#include "services/worker/session_internal.h"

namespace gradq {
namespace {

constexpr absl::Duration kBulkPatience = absl::Minutes(1);

}  // namespace

absl::Status Session::UploadOnce(const Attempt& attempt, std::string_view sha256,
                                 std::string_view bytes) {
  grpc::ClientContext context;
  SetDeadline(context, kBulkPatience);
  v1::WriteShardResponse response;
  std::unique_ptr<grpc::ClientWriter<v1::WriteShardRequest>> stream =
      bulk_->WriteShard(&context, &response);
  v1::WriteShardRequest request;
  request.set_session(id());
  request.set_task(attempt.lease().task());
  request.set_attempt(attempt.lease().attempt());
  request.set_sha256(std::string(sha256));
  request.set_size(static_cast<int64_t>(bytes.size()));
  // A refused write means that the server answered early; its status says why.
  bool open = stream->Write(request);
  for (size_t offset = 0; open && offset < bytes.size(); offset += kMessageBytes) {
    if (attempt.stopped()) {
      context.TryCancel();
      break;
    }
    v1::WriteShardRequest piece;
    piece.set_data(std::string(bytes.substr(offset, kMessageBytes)));
    open = stream->Write(piece);
  }
  stream->WritesDone();
  const absl::Status status = FromGrpc(stream->Finish());
  if (attempt.stopped() && !status.ok()) {
    return absl::CancelledError(attempt.stop_reason());
  }
  return AsUnavailable(status);
}

absl::Status Session::WriteShard(const Attempt& attempt, std::string_view sha256,
                                 std::string_view bytes) {
  return RetryUnavailable(
      kBulkPatience, [&] { return attempt.stopped(); },
      [&] { return UploadOnce(attempt, sha256, bytes); });
}

absl::StatusOr<std::string> Session::ReadShard(const Attempt& attempt, const std::string& sha256) {
  std::string bytes;
  GRADQ_RETURN_IF_ERROR(RetryUnavailable(
      kBulkPatience, [&] { return attempt.stopped(); },
      [&]() -> absl::Status {
        v1::ReadShardRequest request;
        request.set_session(id());
        request.set_job(attempt.lease().job().name());
        request.set_sha256(sha256);
        request.set_offset(static_cast<int64_t>(bytes.size()));
        grpc::ClientContext context;
        SetDeadline(context, kBulkPatience);
        const std::unique_ptr<grpc::ClientReader<v1::FileChunk>> stream =
            bulk_->ReadShard(&context, request);
        bool damaged = false;
        v1::FileChunk chunk;
        while (stream->Read(&chunk)) {
          damaged = damaged || Xxh3(chunk.data()) != chunk.xxh3() ||
                    chunk.offset() != static_cast<int64_t>(bytes.size());
          if (damaged || attempt.stopped()) {
            context.TryCancel();
          } else {
            bytes += chunk.data();
          }
        }
        absl::Status status = FromGrpc(stream->Finish());
        if (attempt.stopped()) return absl::CancelledError(attempt.stop_reason());
        if (damaged) {
          return absl::DataLossError(StrCat("shard was damaged on its way: ", sha256));
        }
        if (absl::IsNotFound(status) && id() != request.session()) {
          return absl::UnavailableError(std::string(status.message()));
        }
        return AsUnavailable(std::move(status));
      }));
  return bytes;
}

FetchRange Session::ModelReader(std::string job) {
  return [this, job = std::move(job)](
             const std::string& file, int64_t offset, int64_t length,
             absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) -> absl::Status {
    int64_t done = 0;
    bool refused = false;
    return RetryUnavailable(
        kBulkPatience, [&] { return refused || draining_; },
        [&]() -> absl::Status {
          // A listing (no file name) has no offsets to resume at: it is small and starts over only
          // when nothing came.
          v1::ReadModelRequest request;
          request.set_session(id());
          request.set_job(job);
          request.set_file(file);
          request.set_offset(offset + done);
          request.set_length(length == 0 ? 0 : length - done);
          grpc::ClientContext context;
          SetDeadline(context, kBulkPatience);
          std::unique_ptr<grpc::ClientReader<v1::FileChunk>> stream =
              bulk_->ReadModel(&context, request);
          v1::FileChunk chunk;
          while (stream->Read(&chunk)) {
            if (absl::Status status = receive(chunk); !status.ok()) {
              refused = true;
              context.TryCancel();
              while (stream->Read(&chunk)) {
              }
              stream->Finish();
              return status;
            }
            done += file.empty() ? 1 : static_cast<int64_t>(chunk.data().size());
          }
          absl::Status status = FromGrpc(stream->Finish());
          if (file.empty() && done > 0) refused = !status.ok();
          if (absl::IsNotFound(status) && id() != request.session()) {
            return absl::UnavailableError(std::string(status.message()));
          }
          if ((absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) && length != 0 &&
              done == length)
            return absl::OkStatus();
          return AsUnavailable(std::move(status));
        });
  };
}

}  // namespace gradq
