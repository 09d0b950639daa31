#include "services/worker/remote_chunk_reader.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/clock.h"
#include "lib/base/digest.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "services/worker/chunk_service.h"

namespace gradq {
namespace {

// A call may wait long for a chunk, but not for ever: it is begun anew at the same index.
constexpr absl::Duration kCallDeadline = absl::Minutes(10);
constexpr int kDamagedTries = 3;
constexpr int64_t kMaxChunkBytes = int64_t{1} << 40;

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteChunkReader>> RemoteChunkReader::Open(
    const StreamKey& key, const std::string& address, RemoteReaderOptions options,
    int first_index) {
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                         Dial(address, {.insecure = options.insecure, .bulk = true}));
  std::unique_ptr<RemoteChunkReader> reader(
      new RemoteChunkReader(key, address, std::move(options), first_index));
  reader->stub_ = v1::ChunkService::NewStub(channel);
  return reader;
}

RemoteChunkReader::~RemoteChunkReader() {
  Cancel();
  if (call_ != nullptr) Close().IgnoreError();
}

bool RemoteChunkReader::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

void RemoteChunkReader::Cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (call_ != nullptr) call_->context.TryCancel();
}

bool RemoteChunkReader::Pause(absl::Duration duration) {
  const absl::Time end = absl::Now() + duration;
  while (!cancelled()) {
    const absl::Duration left = end - absl::Now();
    if (left <= absl::ZeroDuration()) return true;
    absl::SleepFor(std::min(left, absl::Milliseconds(20)));
  }
  return false;
}

bool RemoteChunkReader::Begin() {
  auto call = std::make_unique<Call>();
  SetDeadline(call->context, kCallDeadline);
  call->context.AddMetadata(std::string(kReadTokenKey), options_.read_token);
  v1::ReadChunksRequest request;
  *request.mutable_stream() = ToProto(key_);
  request.set_first_index(index_);
  std::lock_guard lock(mutex_);
  if (cancelled_) return false;
  call->stream = stub_->ReadChunks(&call->context, request);
  call_ = std::move(call);
  return true;
}

absl::Status RemoteChunkReader::Close() {
  call_->context.TryCancel();
  v1::ChunkPiece rest;
  while (call_->stream->Read(&rest)) {
  }
  absl::Status status = FromGrpc(call_->stream->Finish());
  std::lock_guard lock(mutex_);
  call_.reset();
  return status;
}

absl::StatusOr<Chunk> RemoteChunkReader::ReadOne() {
  Chunk chunk;
  size_t tensor = 0;  // tensor now being filled, and bytes in it
  size_t filled = 0;
  int64_t total = 0;
  std::vector<std::byte*> targets;
  bool begun = false;
  v1::ChunkPiece piece;
  while (call_->stream->Read(&piece)) {
    if (piece.index() != index_ || piece.has_header() == begun) {
      return absl::DataLossError(StrCat("piece of a chunk out of place: ", ToString(key_), ", ",
                                        piece.index(), " instead of ", index_));
    }
    if (Xxh3(piece.data()) != piece.xxh3()) {
      return absl::DataLossError(
          StrCat("checksum of a piece is wrong: ", ToString(key_), ", chunk ", index_));
    }
    if (!begun) {
      begun = true;
      int64_t sum = 0;
      for (const v1::TensorHeader& header : piece.header().tensors()) {
        HostTensor host{
            header.name(), header.dtype(), {header.shape().begin(), header.shape().end()}, {}};
        GRADQ_ASSIGN_OR_RETURN(const int64_t bytes, TensorBytes(host.dtype, host.shape));
        sum += bytes;
        if (sum > kMaxChunkBytes || sum > piece.header().size()) {
          return absl::DataLossError(
              StrCat("chunk header is impossible: ", ToString(key_), ", chunk ", index_));
        }
        std::shared_ptr<std::byte> memory = AllocateBytes(static_cast<size_t>(bytes));
        targets.push_back(memory.get());
        host.data = {std::move(memory), static_cast<size_t>(bytes)};
        chunk.tensors.push_back(std::move(host));
      }
      total = sum;
      if (total != piece.header().size()) {
        return absl::DataLossError(
            StrCat("chunk header is impossible: ", ToString(key_), ", chunk ", index_));
      }
    }
    std::string_view data = piece.data();
    while (!data.empty()) {
      while (tensor < chunk.tensors.size() && filled == chunk.tensors[tensor].data.size) {
        ++tensor;
        filled = 0;
      }
      if (tensor == chunk.tensors.size()) {
        return absl::DataLossError(
            StrCat("chunk is longer than its header says: ", ToString(key_), ", ", index_));
      }
      const size_t take = std::min(data.size(), chunk.tensors[tensor].data.size - filled);
      std::memcpy(targets[tensor] + filled, data.data(), take);
      filled += take;
      total -= static_cast<int64_t>(take);
      data.remove_prefix(take);
    }
    if (!piece.last()) continue;
    chunk.sha256 = piece.sha256();
    if (total != 0 || ChunkDigest(chunk) != chunk.sha256) {
      return absl::DataLossError(
          StrCat("digest of a chunk is wrong: ", ToString(key_), ", chunk ", index_));
    }
    return chunk;
  }
  const absl::Status status = FromGrpc(call_->stream->Finish());
  {
    std::lock_guard lock(mutex_);
    call_.reset();
  }
  if (!status.ok()) return status;
  if (begun) {
    return absl::UnavailableError(
        StrCat("stream ended within a chunk: ", ToString(key_), ", ", index_));
  }
  return absl::OutOfRangeError(StrCat("stream is complete: ", ToString(key_)));
}

absl::StatusOr<Chunk> RemoteChunkReader::Next() {
  std::optional<absl::Duration> failing;  // since when; waiting for a slow producer is no failure
  absl::Duration pause = absl::Milliseconds(10);
  int damaged = 0;
  while (true) {
    if (cancelled() || (call_ == nullptr && !Begin())) {
      return absl::CancelledError(StrCat("reader was stopped: ", ToString(key_)));
    }
    absl::StatusOr<Chunk> chunk = ReadOne();
    if (chunk.ok()) {
      ++index_;
      received_any_ = true;
      return chunk;
    }
    if (call_ != nullptr) Close().IgnoreError();
    if (cancelled()) return absl::CancelledError(StrCat("reader was stopped: ", ToString(key_)));
    const absl::Status& status = chunk.status();
    const absl::Duration now = Clock::Real().Monotonic();
    if (!failing.has_value() || absl::IsDeadlineExceeded(status)) failing = now;
    const absl::Duration waited = now - *failing;
    bool again = false;
    if (absl::IsDeadlineExceeded(status)) {
      again = true;
    } else if (absl::IsUnavailable(status)) {
      again = waited < options_.patience;
    } else if (absl::IsNotFound(status) || absl::IsPermissionDenied(status)) {
      again = !received_any_ && waited < options_.begin_patience;
    } else if (absl::IsDataLoss(status)) {
      again = ++damaged < kDamagedTries;
      LogWarning("damaged chunk is read again: ", status.message(), " from ", address_);
    }
    if (!again) {
      if (absl::IsOutOfRange(status)) return chunk;
      return absl::Status(status.code(),
                          StrCat(std::string(status.message()), ", from ", address_));
    }
    if (!Pause(pause)) continue;
    pause = std::min(pause * 2, absl::Milliseconds(500));
  }
}

}  // namespace gradq
