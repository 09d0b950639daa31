#include "services/worker/task_inputs.h"

#include <atomic>
#include <utility>

#include "lib/base/status_macros.h"
#include "services/worker/chunk_service.h"
#include "services/worker/remote_chunk_reader.h"

namespace gradq {
namespace {

class RecordingWriter : public ChunkWriter {
 public:
  RecordingWriter(std::unique_ptr<ChunkWriter> writer, std::shared_ptr<absl::Status> failure)
      : writer_(std::move(writer)), failure_(std::move(failure)) {}
  absl::StatusOr<std::string> Append(Chunk chunk) override {
    absl::StatusOr<std::string> digest = writer_->Append(std::move(chunk));
    if (!digest.ok()) *failure_ = digest.status();
    return digest;
  }
  absl::Status Complete() override { return writer_->Complete(); }

 private:
  std::unique_ptr<ChunkWriter> writer_;
  std::shared_ptr<absl::Status> failure_;  // shared by all writers of a task, read after it
};

}  // namespace

TaskOutcome Failed(v1::FinishTaskRequest::Outcome outcome, absl::Status status) {
  TaskOutcome failed;
  failed.outcome = outcome;
  failed.status = std::move(status);
  return failed;
}

// Of model files and weights: what the network did may pass, what the files hold will not.
TaskOutcome ModelFailed(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return Failed(v1::FinishTaskRequest::FAILED_FATAL, std::move(status));
    default:
      return Failed(v1::FinishTaskRequest::FAILED_RETRYABLE, std::move(status));
  }
}

// Remembers what failed, so that a failed task can tell a lost input from a fault of its own.
class TaskInputs::RecordingReader : public ChunkReader {
 public:
  RecordingReader(v1::StreamName stream, std::unique_ptr<ChunkReader> reader)
      : stream_(std::move(stream)), reader_(std::move(reader)) {}
  absl::StatusOr<Chunk> Next() override {
    absl::StatusOr<Chunk> chunk = reader_->Next();
    if (!chunk.ok() && !absl::IsOutOfRange(chunk.status()) && !absl::IsCancelled(chunk.status())) {
      failed_ = true;
    }
    return chunk;
  }
  void Cancel() override { reader_->Cancel(); }
  const v1::StreamName& stream() const { return stream_; }
  bool failed() const { return failed_; }

 private:
  const v1::StreamName stream_;
  std::unique_ptr<ChunkReader> reader_;
  std::atomic<bool> failed_ = false;
};

absl::StatusOr<ChunkReader*> TaskInputs::Open(const v1::StreamLocation& location) {
  const StreamKey key = FromProto(location.stream());
  std::unique_ptr<ChunkReader> reader;
  if (store_->Contains(key) || location.worker() == session_id_) {
    absl::StatusOr<std::unique_ptr<ChunkReader>> local = store_->Read(key);
    if (!local.ok()) {
      lost_.push_back(location.stream());
      return local.status();
    }
    reader = *std::move(local);
  } else {
    RemoteReaderOptions options;
    options.read_token = lease_.read_token();
    options.insecure = insecure_;
    absl::StatusOr<std::unique_ptr<RemoteChunkReader>> remote =
        RemoteChunkReader::Open(key, location.address(), std::move(options));
    if (!remote.ok()) {
      lost_.push_back(location.stream());
      return remote.status();
    }
    reader = *std::move(remote);
  }
  readers_.push_back(std::make_shared<RecordingReader>(location.stream(), std::move(reader)));
  return readers_.back().get();
}

std::vector<v1::StreamName> TaskInputs::Lost() const {
  std::vector<v1::StreamName> lost = lost_;
  for (const std::shared_ptr<RecordingReader>& reader : readers_) {
    if (reader->failed()) lost.push_back(reader->stream());
  }
  return lost;
}

TaskOutcome TaskInputs::Classify(const Attempt& attempt, absl::Status status,
                                 const absl::Status& output) const {
  if (attempt.stopped()) {
    return Failed(v1::FinishTaskRequest::STOPPED, absl::CancelledError(attempt.stop_reason()));
  }
  std::vector<v1::StreamName> lost = Lost();
  if (!lost.empty()) {
    TaskOutcome outcome = Failed(v1::FinishTaskRequest::INPUT_LOST, std::move(status));
    outcome.lost_inputs = std::move(lost);
    return outcome;
  }
  // An own stream that was freed under us: the attempt is not wanted any more.
  if (absl::IsNotFound(output)) return Failed(v1::FinishTaskRequest::STOPPED, output);
  if (!output.ok()) return Failed(v1::FinishTaskRequest::FAILED_WORKER, output);
  if (absl::IsInvalidArgument(status)) {
    return Failed(v1::FinishTaskRequest::FAILED_FATAL, std::move(status));
  }
  return Failed(v1::FinishTaskRequest::FAILED_RETRYABLE, std::move(status));
}

std::unique_ptr<ChunkWriter> RecordFailures(std::unique_ptr<ChunkWriter> writer,
                                            std::shared_ptr<absl::Status> failure) {
  return std::make_unique<RecordingWriter>(std::move(writer), std::move(failure));
}

}  // namespace gradq
