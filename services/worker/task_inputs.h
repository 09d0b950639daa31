#pragma once

// The streams that a task reads, from the own store or from other workers, and the class that a
// failed task has: what went wrong with an input, with the worker itself, or with the task. Compute
// thread.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/pipeline/chunk_store.h"
#include "services/worker/session.h"

namespace gradq {

// A task that ends with `outcome`, its status naming why.
TaskOutcome Failed(v1::FinishTaskRequest::Outcome outcome, absl::Status status);
// Of model files, shards and weights: what the network did may pass, what the files hold will not.
TaskOutcome ModelFailed(absl::Status status);

class TaskInputs {
 public:
  // Both must outlive the inputs. `session_id`: this worker's.
  TaskInputs(const v1::Lease& lease, ChunkStore* store, std::string session_id, bool insecure)
      : lease_(lease), store_(store), session_id_(std::move(session_id)), insecure_(insecure) {}

  // A reader that lives as long as this. Errors of opening it; the stream then counts as lost.
  absl::StatusOr<ChunkReader*> Open(const v1::StreamLocation& location);

  // The streams that could not be opened or read.
  std::vector<v1::StreamName> Lost() const;

  // The class of a task's failure while it computed; `output`: what writing its own streams said.
  TaskOutcome Classify(const Attempt& attempt, absl::Status status,
                       const absl::Status& output = absl::OkStatus()) const;

 private:
  class RecordingReader;

  const v1::Lease& lease_;
  ChunkStore* const store_;
  const std::string session_id_;
  const bool insecure_;
  // shared_ptr: the type is known in the source file only.
  std::vector<std::shared_ptr<RecordingReader>> readers_;
  std::vector<v1::StreamName> lost_;
};

// Remembers in `failure` what its Append said last; all writers of a task share one.
std::unique_ptr<ChunkWriter> RecordFailures(std::unique_ptr<ChunkWriter> writer,
                                            std::shared_ptr<absl::Status> failure);

}  // namespace gradq
