#pragma once

// One WatchJob call: waits in the notifier, sends the job whenever its revision has grown and at
// least every 10 s, ends after a terminal state. At most one message is on its way, so that a slow
// reader sees coalesced changes. Thread-safe against gRPC's callbacks.

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"
#include "services/coordinator/coordinator.h"

namespace gradq {

class WatchReactor : public grpc::ServerWriteReactor<v1::Job> {
 public:
  static WatchReactor* Start(Coordinator* coordinator, std::string job, int64_t after_revision);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  WatchReactor(Coordinator* coordinator, std::string job, int64_t after_revision)
      : coordinator_(*coordinator), name_(std::move(job)), revision_(after_revision) {}
  std::optional<absl::Duration> Poll(bool stopping);
  // With mutex_ held; ends the call once.
  void End(grpc::Status status);

  Coordinator& coordinator_;
  const std::string name_;

  std::mutex mutex_;
  int64_t revision_;
  absl::Duration next_keepalive_ = absl::ZeroDuration();
  bool writing_ = false;
  bool last_ = false;  // the message on its way is the last one
  bool cancelled_ = false;
  bool ended_ = false;
  v1::Job message_;
  // Kept by gRPC's side until OnDone; the notifier's function holds another reference, so either
  // may be the last.
  std::shared_ptr<WatchReactor> self_;
};

}  // namespace gradq
