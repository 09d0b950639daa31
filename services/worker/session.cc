#include "services/worker/session.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "services/worker/session_internal.h"

namespace gradq {
namespace {

constexpr absl::Duration kUnaryDeadline = absl::Seconds(15);
constexpr absl::Duration kForever = absl::Hours(24 * 365);
constexpr size_t kMaxMessage = 2048;

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

void ToProto(absl::Duration duration, google::protobuf::Duration* out) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

}  // namespace

absl::Status AsUnavailable(absl::Status status) {
  if (!absl::IsDeadlineExceeded(status)) return status;
  return absl::UnavailableError(std::string(status.message()));
}

std::string Attempt::stop_reason() const {
  std::lock_guard lock(mutex_);
  return reason_;
}

void Attempt::Stop(std::string_view reason) {
  std::lock_guard lock(mutex_);
  if (!stopped_.exchange(true)) reason_ = reason;
}

void Attempt::Progress(int chunks_done, std::string last_digest) {
  std::lock_guard lock(mutex_);
  chunks_done_ = chunks_done;
  last_digest_ = std::move(last_digest);
}

v1::AttemptProgress Attempt::progress() const {
  v1::AttemptProgress progress;
  progress.set_task(lease_.task());
  progress.set_attempt(lease_.attempt());
  std::lock_guard lock(mutex_);
  progress.set_chunks_done(chunks_done_);
  // Hex: proto strings must be UTF-8.
  static constexpr char kHex[] = "0123456789abcdef";
  std::string* digest = progress.mutable_last_digest();
  for (const unsigned char byte : last_digest_) {
    digest->push_back(kHex[byte >> 4]);
    digest->push_back(kHex[byte & 15]);
  }
  return progress;
}

absl::StatusOr<std::unique_ptr<Session>> Session::Open(SessionOptions options,
                                                       LeaseHandler* handler) {
  std::unique_ptr<Session> session(new Session(std::move(options), handler));
  const SessionOptions& given = session->options_;
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> control,
                         Dial(given.coordinator, {.insecure = given.insecure}));
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> bulk,
                         Dial(given.coordinator, {.insecure = given.insecure, .bulk = true}));
  session->control_ = v1::WorkerService::NewStub(control);
  session->bulk_ = v1::WorkerService::NewStub(bulk);
  return session;
}

Session::~Session() {
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    wake_.notify_all();
  }
  if (heartbeat_.joinable()) heartbeat_.join();
}

std::string Session::id() const {
  std::lock_guard lock(mutex_);
  return id_;
}

absl::Status Session::Register(absl::Duration total) {
  return RetryUnavailable(
      total,
      [&] {
        std::lock_guard lock(mutex_);
        return ended_ || draining_;
      },
      [&]() -> absl::Status {
        const absl::Duration sent = options_.clock->Monotonic();
        grpc::ClientContext context;
        SetDeadline(context, std::min(kUnaryDeadline, total));
        v1::RegisterWorkerResponse response;
        const absl::Status status =
            FromGrpc(control_->RegisterWorker(&context, options_.registration, &response));
        if (!status.ok()) return AsUnavailable(status);
        std::lock_guard lock(mutex_);
        id_ = response.session();
        heartbeat_interval_ =
            std::max(FromProto(response.heartbeat_interval()), absl::Milliseconds(1));
        lease_ttl_ = FromProto(response.lease_ttl());
        renewed_ = sent;
        order_ = 0;
        // Read tokens and orders of this coordinator come with a heartbeat.
        beat_now_ = true;
        wake_.notify_all();
        LogInfo("registered: ", options_.coordinator, ", session ", id_);
        return absl::OkStatus();
      });
}

absl::Status Session::Run() {
  const absl::Status registered = Register(options_.connect_timeout);
  if (draining_) return absl::OkStatus();
  if (absl::IsUnavailable(registered)) {
    return absl::DeadlineExceededError(StrCat("coordinator not reachable: ", options_.coordinator,
                                              ", ", absl::FormatDuration(options_.connect_timeout),
                                              ": ", registered.message()));
  }
  GRADQ_RETURN_IF_ERROR(registered);
  heartbeat_ = std::thread([this] { HeartbeatLoop(); });

  absl::Duration backoff = absl::Milliseconds(100);
  absl::Status ended = absl::OkStatus();
  while (!draining_) {
    absl::StatusOr<std::optional<v1::Lease>> lease = PollLease();
    if (draining_ && (!lease.ok() || !lease->has_value())) break;
    if (lease.ok()) {
      backoff = absl::Milliseconds(100);
      if (lease->has_value()) {
        Execute(**std::move(lease));
      } else {
        handler_->Idle();
      }
      continue;
    }
    if (absl::IsNotFound(lease.status())) {
      LogWarning("session is unknown to the coordinator, registering again: ", id());
      // With the session went its streams: no lease will ever name them.
      handler_->SessionLost();
      ended = Register(kForever);
      if (!ended.ok() && !draining_) break;
      ended = absl::OkStatus();
      continue;
    }
    LogWarning("no lease from the coordinator, trying again: ", lease.status().message());
    if (!Pause(backoff)) break;
    backoff = std::min(backoff * 2, absl::Seconds(5));
  }
  if (ended.ok()) AnnounceDrain();
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    wake_.notify_all();
  }
  heartbeat_.join();
  return ended;
}

bool Session::Pause(absl::Duration duration) {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, absl::ToChronoMicroseconds(duration), [&] { return ended_ || draining_; });
  return !ended_ && !draining_;
}

absl::StatusOr<std::optional<v1::Lease>> Session::PollLease() {
  grpc::ClientContext context;
  SetDeadline(context, options_.poll + kUnaryDeadline);
  v1::LeaseTaskRequest request;
  ToProto(options_.poll, request.mutable_wait());
  {
    std::lock_guard lock(mutex_);
    if (draining_) return std::nullopt;
    request.set_session(id_);
    polling_ = &context;
  }
  v1::LeaseTaskResponse response;
  const absl::Status status = FromGrpc(control_->LeaseTask(&context, request, &response));
  {
    std::lock_guard lock(mutex_);
    polling_ = nullptr;
  }
  GRADQ_RETURN_IF_ERROR(status);
  if (!response.has_lease()) return std::nullopt;
  return std::move(*response.mutable_lease());
}

void Session::Execute(v1::Lease lease) {
  auto attempt = std::make_shared<Attempt>(std::move(lease));
  {
    std::lock_guard lock(mutex_);
    running_ = attempt;
    if (draining_ && !handler_->FinishesInDrain(attempt->lease())) attempt->Stop("worker drains");
    wake_.notify_all();
  }
  if (attempt->lease().freed_size() > 0) {
    v1::HeartbeatResponse orders;
    *orders.mutable_freed() = attempt->lease().freed();
    handler_->Orders(orders);
  }
  LogInfo("task begins: ", attempt->lease().task(), ", attempt ", attempt->lease().attempt());
  const absl::Duration started = options_.clock->Monotonic();
  const TaskOutcome outcome = handler_->Run(*attempt);
  const absl::Duration took = options_.clock->Monotonic() - started;
  if (outcome.outcome == v1::FinishTaskRequest::SUCCEEDED) {
    LogInfo("task is done: ", attempt->lease().task(), ", ", absl::ToDoubleSeconds(took), " s");
  } else {
    LogWarning("task ended: ", attempt->lease().task(), ", ",
               v1::FinishTaskRequest::Outcome_Name(outcome.outcome), ": ",
               outcome.status.message());
  }
  const bool recorded = Finish(*attempt, outcome);
  {
    std::lock_guard lock(mutex_);
    running_ = nullptr;
  }
  handler_->Finished(attempt->lease(),
                     recorded && outcome.outcome == v1::FinishTaskRequest::SUCCEEDED);
}

bool Session::Finish(const Attempt& attempt, const TaskOutcome& outcome) {
  v1::FinishTaskRequest request;
  request.set_task(attempt.lease().task());
  request.set_attempt(attempt.lease().attempt());
  request.set_outcome(outcome.outcome);
  request.set_code(static_cast<int>(outcome.status.code()));
  request.set_message(std::string(outcome.status.message().substr(0, kMaxMessage)));
  *request.mutable_result() = outcome.result;
  request.set_session(id());
  for (const v1::StreamName& lost : outcome.lost_inputs) *request.add_lost_inputs() = lost;
  // A result is worth waiting for: the heartbeat thread goes on renewing the lease meanwhile. In a
  // drain the patience has an end.
  const absl::Status status = RetryUnavailable(
      kForever,
      [&] {
        return draining_ && options_.clock->Monotonic() - drain_started_ > options_.drain_grace;
      },
      [&] {
        grpc::ClientContext context;
        SetDeadline(context, kUnaryDeadline);
        v1::FinishTaskResponse response;
        return AsUnavailable(FromGrpc(control_->FinishTask(&context, request, &response)));
      });
  if (status.ok()) return true;
  LogWarning("result was not accepted: ", attempt.lease().task(), ", attempt ",
             attempt.lease().attempt(), ": ", status.message());
  return false;
}

void Session::HeartbeatLoop() {
  absl::Duration last = options_.clock->Monotonic();
  bool announced = false;
  while (true) {
    bool drain_begins = false;
    {
      std::unique_lock lock(mutex_);
      while (!ended_ && !beat_now_ && !(draining_ && !announced)) {
        // A running task shortens the interval, so it is looked at anew after every wake-up.
        const absl::Duration interval = running_ == nullptr
                                            ? heartbeat_interval_
                                            : std::min(heartbeat_interval_, options_.busy_interval);
        const absl::Duration left = last + interval - options_.clock->Monotonic();
        if (left <= absl::ZeroDuration()) break;
        wake_.wait_for(lock, absl::ToChronoMicroseconds(std::min(left, interval)));
      }
      if (ended_) return;
      drain_begins = draining_ && !announced;
      beat_now_ = false;
    }
    if (drain_begins) {
      AnnounceDrain();
      announced = true;
    }
    last = options_.clock->Monotonic();
    if (!Beat()) {
      // Try again well before the lease ends.
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, absl::ToChronoMicroseconds(std::min(lease_ttl_ / 10, absl::Seconds(1))),
                     [&] { return ended_; });
      beat_now_ = true;
    }
    StopWhenSilent();
    if (draining_ && options_.clock->Monotonic() - drain_started_ > options_.drain_grace) {
      StopRunning("worker drains");
    }
  }
}

bool Session::Beat() {
  v1::HeartbeatRequest request;
  absl::Duration deadline;
  {
    std::lock_guard lock(mutex_);
    request.set_session(id_);
    request.set_acknowledged_order(order_);
    if (running_ != nullptr) *request.add_running() = running_->progress();
    deadline = std::clamp(lease_ttl_ / 3, absl::Milliseconds(1), heartbeat_interval_);
  }
  handler_->DescribeStreams(&request);
  const absl::Duration sent = options_.clock->Monotonic();
  grpc::ClientContext context;
  SetDeadline(context, deadline);
  v1::HeartbeatResponse response;
  const absl::Status status = FromGrpc(control_->Heartbeat(&context, request, &response));
  if (!status.ok()) {
    // Also when the session is unknown: a coordinator that restarted still takes the result of the
    // running attempt, so it goes on as long as its lease may; the next LeaseTask registers again.
    if (!silent_ && !draining_) LogWarning("heartbeat is not answered: ", status.message());
    silent_ = true;
    return false;
  }
  silent_ = false;
  {
    std::lock_guard lock(mutex_);
    if (id_ == request.session()) renewed_ = sent;
    for (const v1::AttemptProgress& revoked : response.revoked()) {
      if (running_ != nullptr && running_->lease().task() == revoked.task() &&
          running_->lease().attempt() == revoked.attempt()) {
        running_->Stop("revoked by the coordinator");
      }
    }
  }
  handler_->Orders(response);
  {
    std::lock_guard lock(mutex_);
    if (id_ == request.session()) order_ = response.order();
  }
  if (response.drain()) Drain();
  return true;
}

void Session::StopRunning(std::string_view reason) {
  std::lock_guard lock(mutex_);
  if (running_ != nullptr) running_->Stop(reason);
}

void Session::StopWhenSilent() {
  std::lock_guard lock(mutex_);
  if (running_ == nullptr || running_->stopped()) return;
  const absl::Duration silence = options_.clock->Monotonic() - renewed_;
  if (silence <= lease_ttl_ * 0.8) return;
  running_->Stop(StrCat("lease was not renewed: ", absl::FormatDuration(silence)));
}

void Session::Drain() {
  std::lock_guard lock(mutex_);
  if (draining_) return;
  drain_started_ = options_.clock->Monotonic();
  draining_ = true;
  LogInfo("draining");
  if (polling_ != nullptr) polling_->TryCancel();
  if (running_ != nullptr && !handler_->FinishesInDrain(running_->lease())) {
    running_->Stop("worker drains");
  }
  wake_.notify_all();
}

void Session::AnnounceDrain() {
  v1::DrainWorkerRequest request;
  request.set_session(id());
  v1::DrainWorkerResponse response;
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(2));
  const absl::Status status = FromGrpc(control_->DrainWorker(&context, request, &response));
  // The session of a worker that leaves ends with its last task.
  if (!status.ok() && !absl::IsNotFound(status)) {
    LogWarning("drain was not announced: ", status.message());
  }
}

}  // namespace gradq
