#pragma once

// Client side: channels with our message limits, deadlines and retry of UNAVAILABLE. Thread-safe.

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradq {

struct DialOptions {
  bool insecure = false;  // plaintext beyond loopback
  bool bulk =
      false;  // a channel of its own for tensors, so that heartbeats never queue behind them
};

// INVALID_ARGUMENT: not HOST:PORT; a host that is not loopback without `insecure`. Does not connect
// yet.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const std::string& target,
                                                    const DialOptions& options);
// DEADLINE_EXCEEDED naming the target when nothing answers within `timeout`.
absl::Status WaitConnected(grpc::Channel& channel, const std::string& target,
                           absl::Duration timeout);

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout);

// Calls `attempt` until it is not UNAVAILABLE or `total` has passed, with exponential backoff and
// full jitter (100 ms .. 5 s). `stopped` (may return true at any time) ends it early.
absl::Status RetryUnavailable(absl::Duration total, absl::FunctionRef<bool()> stopped,
                              absl::FunctionRef<absl::Status()> attempt);

}  // namespace gradq
