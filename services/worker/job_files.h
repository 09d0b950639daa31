#pragma once

// The model and the calibration tokens of the job that a worker is on, one job at a time: opened
// from the path of the lease where it holds the same model, else read through the coordinator.
// Compute thread.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/format/checkpoint.h"
#include "services/worker/session.h"

namespace gradq {

class JobFiles {
 public:
  // Opens the job's model unless it is open; another job's files are dropped. Errors of the
  // checkpoint and of the network.
  absl::Status Open(const v1::JobContext& context, Session* session);
  // Reads the job's tokens unless they were read; the model must be open. DATA_LOSS,
  // INVALID_ARGUMENT (a token beyond the vocabulary), errors of the network.
  absl::Status ReadTokens(const v1::JobContext& context, Session* session);

  // Name of the open job; empty: none.
  const std::string& job() const { return job_; }
  const std::shared_ptr<const Checkpoint>& checkpoint() const { return checkpoint_; }
  // [sequences, length].
  const std::vector<int32_t>& tokens() const { return tokens_; }

 private:
  std::string job_;
  // shared_ptr: weight sources hold it while stages are loaded.
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<int32_t> tokens_;
};

}  // namespace gradq
