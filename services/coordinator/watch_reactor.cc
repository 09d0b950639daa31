#include "services/coordinator/watch_reactor.h"

#include <utility>

#include "lib/jobs/coordinator_core.h"
#include "lib/jobs/job_state.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

constexpr absl::Duration kKeepalive = absl::Seconds(10);

}  // namespace

WatchReactor* WatchReactor::Start(Coordinator* coordinator, std::string job,
                                  int64_t after_revision) {
  std::shared_ptr<WatchReactor> reactor(
      new WatchReactor(coordinator, std::move(job), after_revision));
  reactor->self_ = reactor;
  reactor->next_keepalive_ = coordinator->clock().Monotonic() + kKeepalive;
  coordinator->notifier().Add([reactor](bool stopping) { return reactor->Poll(stopping); });
  return reactor.get();
}

std::optional<absl::Duration> WatchReactor::Poll(bool stopping) {
  // The core is asked without this call's lock: its own lock may be held for a commit.
  const absl::StatusOr<v1::Job> job =
      coordinator_.WithCore([&](CoordinatorCore& core, Now) { return core.GetJob(name_); });
  const bool untold = job.ok() && IsTerminal(job->state()) && coordinator_.ReportPending(name_);
  const absl::Duration now = coordinator_.clock().Monotonic();
  const std::lock_guard lock(mutex_);
  if (ended_) return std::nullopt;
  if (writing_) {
    // OnWriteDone wakes the notifier again, except at the end.
    if (stopping) last_ = true;
    return stopping ? std::nullopt : std::optional(absl::InfiniteDuration());
  }
  if (cancelled_) {
    End(grpc::Status::CANCELLED);
  } else if (!job.ok()) {
    End(ToGrpc(job.status()));
  } else if (untold && !stopping) {
    return absl::InfiniteDuration();
  } else if (job->revision() > revision_ || IsTerminal(job->state()) || now >= next_keepalive_) {
    revision_ = job->revision();
    next_keepalive_ = now + kKeepalive;
    last_ = IsTerminal(job->state());
    writing_ = true;
    message_ = *job;
    StartWrite(&message_);
  } else if (stopping) {
    End(ToGrpc(absl::UnavailableError("coordinator is shutting down")));
  }
  return ended_ ? std::nullopt : std::optional(next_keepalive_);
}

void WatchReactor::OnWriteDone(bool ok) {
  const std::shared_ptr<WatchReactor> keep = self_;  // outlives the lock below
  {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (ended_) return;
    if (!ok || cancelled_) {
      End(grpc::Status::CANCELLED);
    } else if (last_) {
      End(IsTerminal(message_.state())
              ? grpc::Status::OK
              : ToGrpc(absl::UnavailableError("coordinator is shutting down")));
    } else if (coordinator_.stopping()) {
      End(ToGrpc(absl::UnavailableError("coordinator is shutting down")));
    }
  }
  coordinator_.notifier().Poke();
}

void WatchReactor::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  coordinator_.notifier().Poke();
}

void WatchReactor::OnDone() {
  // Moved out first: the assignment must not destroy the mutex it is made under.
  const std::shared_ptr<WatchReactor> self = std::move(self_);
}

void WatchReactor::End(grpc::Status status) {
  ended_ = true;
  Finish(std::move(status));
}

}  // namespace gradq
