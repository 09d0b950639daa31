// The half of the coordinator core that workers call: sessions, leases, heartbeats, results.

#include <algorithm>
#include <cctype>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/core_internal.h"
#include "lib/jobs/events.h"
#include "lib/jobs/proto_time.h"
#include "lib/jobs/views.h"

namespace gradq {
namespace {

// Attempts of one task handed back uncounted before each further one counts as a failure: bounds
// loops that blame nobody.
constexpr int kFreeHandBacks = 8;
// Workers that left or were lost and are still listed.
constexpr size_t kRetiredWorkers = 200;
constexpr size_t kMaxMessage = 2048;

absl::Status UnknownSession(const std::string& session) {
  return absl::NotFoundError(StrCat("unknown session, register again: ", session));
}

absl::Status Fenced(const std::string& task, int64_t attempt) {
  return absl::AbortedError(StrCat("the attempt is fenced: ", task, ", ", attempt));
}

// What of a result others depend on.
bool SameResult(const v1::TaskResult& a, const v1::TaskResult& b) {
  return std::equal(a.shards().begin(), a.shards().end(), b.shards().begin(), b.shards().end(),
                    [](const v1::ShardSummary& x, const v1::ShardSummary& y) {
                      return x.sha256() == y.sha256();
                    }) &&
         a.score().SerializeAsString() == b.score().SerializeAsString();
}

// What is wrong with a success; empty: nothing.
std::string WrongResult(const JobState& job, const TaskState& task, const v1::TaskResult& result) {
  const Round& round = job.rounds[task.round].plan;
  const v1::TaskSpec& spec = task.task().spec();
  if (task.is_solve()) {
    const auto& shards = result.shards();
    const bool good =
        shards.size() == round.variants &&
        std::all_of(shards.begin(), shards.end(), [&](const v1::ShardSummary& shard) {
          return shard.linear() == spec.solve_linear().linear() && IsSha256Hex(shard.sha256());
        });
    if (!good) {
      return StrCat("the result does not hold the task's shards: ", spec.solve_linear().linear(),
                    ", ", shards.size(), " of ", round.variants);
    }
  }
  if (task.is_score() && (result.score().linear() != spec.score_linear().linear() ||
                          result.score().bucket_size() != result.score().count_size())) {
    return StrCat("the result does not hold the task's scores: ", spec.score_linear().linear());
  }
  // A round of one node may leave it at loss_sum.
  const auto nodes = static_cast<int>(round.nodes.size());
  if (spec.run_stage().loss() && nodes > 1 &&
      (result.node_loss_sum_size() != nodes || result.loss_tokens() <= 0)) {
    return StrCat("the result does not hold the loss of each node: ", result.node_loss_sum_size(),
                  " of ", nodes);
  }
  return "";
}

absl::Status CheckWorkerName(const std::string& name) {
  const bool plain = !name.empty() && name.size() <= 100 &&
                     std::all_of(name.begin(), name.end(), [](unsigned char c) {
                       return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
                     });
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("worker name is not 1 to 100 letters, digits, '-', '_', '.': ", name));
}

}  // namespace

absl::StatusOr<v1::RegisterWorkerResponse> CoreImpl::RegisterWorker(
    Now now, const v1::RegisterWorkerRequest& request) {
  Begin(now);
  GRADQ_RETURN_IF_ERROR(CheckWorkerName(request.name()));
  if (request.kind() != v1::Worker::COMPUTE && request.kind() != v1::Worker::INFERENCE) {
    return absl::InvalidArgumentError(StrCat("worker kind is not set: ", request.name()));
  }
  if (request.kind() == v1::Worker::COMPUTE && request.advertise().empty()) {
    return absl::InvalidArgumentError(
        StrCat("a compute worker must advertise an address: ", request.name()));
  }
  v1::Worker info;
  info.set_name(StrCat("workers/", request.name()));
  info.set_state(v1::Worker::READY);
  info.set_kind(request.kind());
  info.set_advertise(request.advertise());
  info.set_device(request.device());
  info.set_threads(request.threads());
  info.set_memory_bytes(request.memory_bytes());
  info.set_numerics_class(request.numerics_class());
  *info.mutable_last_heartbeat_time() = ToTimestamp(now_.wall);
  if (WorkerState* older = fleet_.FindName(info.name()); older != nullptr && older->alive()) {
    // After a restart of the coordinator the same process comes back: that is not the worker's
    // loss.
    LoseWorker(older, v1::Worker::LOST, !older->ghost, "a new session of the same name");
  }
  const std::string session = StrCat(request.name(), ".", epoch_, ".", next_session_++);
  fleet_.Put(info, session, now_.monotonic);
  fleet_.Prune(kRetiredWorkers);
  Event(nullptr, info.name(), events::kWorkerRegistered, session);
  GRADQ_RETURN_IF_ERROR(Flush());
  v1::RegisterWorkerResponse response;
  response.set_session(session);
  *response.mutable_heartbeat_interval() = ToProtoDuration(options_.heartbeat_interval);
  *response.mutable_lease_ttl() = ToProtoDuration(options_.lease_ttl);
  return response;
}

// --- leases (leases.cc) ---

absl::StatusOr<std::optional<v1::Lease>> CoreImpl::TryLease(Now now, const std::string& session) {
  Begin(now);
  WorkerState* worker = fleet_.FindSession(session);
  if (worker == nullptr || worker->ghost) {
    GRADQ_RETURN_IF_ERROR(Flush());
    return UnknownSession(session);
  }
  // Not a sign of life: the service repeats a long poll by itself, also for a worker that died.
  // Only an idle worker asks: a revoked attempt has stopped.
  if (worker->slot && worker->slot->revoked) ClearSlot(worker);
  std::pair<JobState*, int> given{nullptr, -1};
  if (worker->slot) {
    given = FindTask(worker->slot->task);  // it never got its lease: the same one again
    if (!InputsOf(*given.first, given.first->tasks[given.second]).complete) {
      ClearSlot(worker);
      HandBack(given.first, given.second, "the worker asked for it again when an input was gone");
      if (given.first->job().state() == v1::Job::RUNNING) SettleJob(given.first);
      given = {nullptr, -1};
    }
  }
  if (!worker->slot && worker->info.state() == v1::Worker::READY) {
    if (const auto chosen = ChooseTask(*worker)) {
      GiveLease(chosen->first, chosen->second, worker);
      given = *chosen;
    }
  }
  GRADQ_RETURN_IF_ERROR(Flush());
  if (given.first == nullptr) return std::optional<v1::Lease>();
  v1::Lease lease = BuildLease(*given.first, given.first->tasks[given.second]);
  for (const FreeOrder& order : worker->free_orders) *lease.add_freed() = order.stream;
  return std::optional<v1::Lease>(std::move(lease));
}

// --- heartbeats ---

absl::StatusOr<v1::HeartbeatResponse> CoreImpl::Heartbeat(Now now,
                                                          const v1::HeartbeatRequest& request) {
  Begin(now);
  WorkerState* worker = fleet_.FindSession(request.session());
  if (worker == nullptr || worker->ghost) {
    GRADQ_RETURN_IF_ERROR(Flush());
    return UnknownSession(request.session());
  }
  worker->last_seen = now_.monotonic;
  *worker->info.mutable_last_heartbeat_time() = ToTimestamp(now_.wall);
  v1::HeartbeatResponse response;
  bool lists_slot = false;
  for (const v1::AttemptProgress& progress : request.running()) {
    if (worker->slot && worker->slot->task == progress.task() &&
        worker->slot->attempt == progress.attempt()) {
      lists_slot = true;
      worker->slot->last_listed = now_.monotonic;
    }
    if (!IsLive(request.session(), progress.task(), progress.attempt())) {
      *response.add_revoked() = progress;
      continue;
    }
    const auto [job, index] = FindTask(progress.task());
    TaskState& task = job->tasks[index];
    const int chunks = std::min(progress.chunks_done(), task.task().spec().run_stage().chunks());
    if (task.is_stage() && chunks > task.task().chunks_done()) {
      task.task().set_chunks_done(chunks);
      TouchTask(job, index);
    }
  }
  if (worker->slot && worker->slot->revoked && !lists_slot) ClearSlot(worker);

  // Orders are repeated until acknowledged, or for long enough where the worker knows no
  // acknowledgement.
  const int64_t acknowledged = request.acknowledged_order();
  worker->acknowledges |= acknowledged > 0;
  auto& orders = worker->free_orders;
  orders.erase(std::remove_if(orders.begin(), orders.end(),
                              [&](const FreeOrder& order) {
                                return order.number <= acknowledged ||
                                       (!worker->acknowledges &&
                                        now_.monotonic - order.since > 4 * options_.lease_ttl);
                              }),
               orders.end());
  response.set_order(worker->last_order);
  for (const FreeOrder& order : orders) *response.add_freed() = order.stream;
  for (const auto& [id, job] : jobs_) {
    if (job.job().state() != v1::Job::QUEUED && !IsTerminal(job.job().state())) {
      (*response.mutable_read_tokens())[job.name()] = ReadToken(job);
    }
  }
  response.set_drain(worker->info.state() == v1::Worker::DRAINING);
  GRADQ_RETURN_IF_ERROR(Flush());
  return response;
}

bool CoreImpl::IsLive(const std::string& session, const std::string& name, int64_t attempt) const {
  const auto [job, index] = const_cast<CoreImpl*>(this)->FindTask(name);
  if (job == nullptr) return false;
  const TaskState& task = job->tasks[index];
  const v1::Job::State wanted =
      task.task().spec().has_validate() ? v1::Job::VALIDATING : v1::Job::RUNNING;
  return job->job().state() == wanted && task.running() && task.task().attempt() == attempt &&
         !session.empty() && task.record.session() == session;
}

absl::Status CoreImpl::CheckAttempt(const std::string& session, const std::string& task,
                                    int64_t attempt) const {
  if (!IsLive(session, task, attempt)) return Fenced(task, attempt);
  return absl::OkStatus();
}

// --- results ---

absl::Status CoreImpl::FinishTask(Now now, const v1::FinishTaskRequest& request) {
  Begin(now);
  const auto [job, index] = FindTask(request.task());
  absl::Status answer;
  if (job == nullptr) {
    answer = absl::NotFoundError(StrCat("no such task: ", request.task()));
  } else {
    WorkerState* worker = fleet_.FindSession(request.session());
    if (worker != nullptr && !worker->ghost) worker->last_seen = now_.monotonic;
    answer = ApplyOutcome(job, index, worker, request);
  }
  GRADQ_RETURN_IF_ERROR(Flush());
  return answer;
}

absl::Status CoreImpl::ApplyOutcome(JobState* job, int index, WorkerState* worker,
                                    const v1::FinishTaskRequest& request) {
  TaskState& task = job->tasks[index];
  const bool live = IsLive(request.session(), request.task(), request.attempt());
  if (worker != nullptr && worker->slot && worker->slot->task == request.task() &&
      worker->slot->attempt == request.attempt()) {
    ClearSlot(worker);
  }
  if (!live) {
    const bool resent = task.record.finished_attempt() == request.attempt() &&
                        task.record.finished_outcome() == request.outcome() &&
                        (request.outcome() != v1::FinishTaskRequest::SUCCEEDED ||
                         SameResult(task.task().result(), request.result()));
    if (resent || request.outcome() == v1::FinishTaskRequest::STOPPED) return absl::OkStatus();
    return Fenced(request.task(), request.attempt());
  }
  if (request.outcome() == v1::FinishTaskRequest::OUTCOME_UNSPECIFIED) {
    return absl::InvalidArgumentError(StrCat("outcome is not set: ", request.task()));
  }
  task.record.set_finished_attempt(request.attempt());
  task.record.set_finished_outcome(request.outcome());
  task.task().set_message(request.message().substr(0, kMaxMessage));
  *task.task().mutable_end_time() = ToTimestamp(now_.wall);
  TouchTask(job, index);

  absl::Status answer;
  switch (request.outcome()) {
    case v1::FinishTaskRequest::SUCCEEDED:
      answer = ApplySuccess(job, index, request);
      break;
    case v1::FinishTaskRequest::FAILED_WORKER:
      task.avoid.insert(task.task().worker());
      HandBack(job, index, StrCat("the worker is at fault: ", request.message()));
      break;
    case v1::FinishTaskRequest::INPUT_LOST:
      ApplyInputLost(job, index, request);
      break;
    case v1::FinishTaskRequest::STOPPED:
      HandBack(job, index, "stopped");
      break;
    case v1::FinishTaskRequest::FAILED_RETRYABLE:
      task.avoid.insert(task.task().worker());
      ChargeFailure(job, index, request);
      break;
    default:  // FAILED_FATAL and whatever a newer worker calls its failure
      FailTask(job, index, request.code(), request.message());
      break;
  }
  if (worker != nullptr && worker->leaving && worker->alive() && !worker->slot) {
    LoseWorker(worker, v1::Worker::GONE, false, "drained");
  }
  if (job->job().state() == v1::Job::RUNNING) SettleJob(job);
  return answer;
}

absl::Status CoreImpl::ApplySuccess(JobState* job, int index,
                                    const v1::FinishTaskRequest& request) {
  TaskState& task = job->tasks[index];
  if (const std::string wrong = WrongResult(*job, task, request.result()); !wrong.empty()) {
    v1::FinishTaskRequest failure = request;
    failure.set_code(static_cast<int>(absl::StatusCode::kInternal));
    failure.set_message(wrong);
    task.record.set_finished_outcome(v1::FinishTaskRequest::FAILED_RETRYABLE);
    ChargeFailure(job, index, failure);
    return absl::InvalidArgumentError(failure.message());
  }
  const std::string session = task.record.session();
  *task.task().mutable_result() = request.result();
  if (task.is_stage()) {
    SettleResult made;
    CompleteStage(job, index, session, &made);
    task.task().set_chunks_done(task.task().spec().run_stage().chunks());
    ApplySettle(job, made);
  }
  task.task().set_state(v1::Task::SUCCEEDED);
  task.record.clear_session();
  Event(job, task.task().name(), events::kTaskSucceeded,
        StrCat("attempt ", request.attempt(), " on ", task.task().worker()));
  if (task.task().spec().has_validate()) {
    *job->job().mutable_validation()->mutable_comparison() = request.result().comparison();
    EndValidation(job, v1::Validation::DONE, "");
  }
  return absl::OkStatus();
}

void CoreImpl::ApplyInputLost(JobState* job, int index, const v1::FinishTaskRequest& request) {
  TaskState& task = job->tasks[index];
  const std::string session = task.record.session();
  std::vector<v1::StreamName> lost(request.lost_inputs().begin(), request.lost_inputs().end());
  if (lost.empty()) {
    // The reporter reads its own streams from memory: what it can't reach lies elsewhere.
    std::vector<v1::StreamName> all;
    const auto add = [&](int producer, const Stream* stream, const std::string& lane) {
      if (stream == nullptr) return;
      all.push_back(StreamNameOf(*job, job->tasks[producer], stream->attempt, lane));
      if (stream->session != session) lost.push_back(all.back());
    };
    const LiveInputs inputs = InputsOf(*job, task);
    add(task.activations, inputs.activations, "out");
    add(task.gradients, inputs.gradients, "out");
    if (inputs.statistic != nullptr) {
      const LinearState& linear = job->linears[task.linears[0]];
      add(linear.rounds[task.statistics_round].producer, inputs.statistic, StatisticLane(linear));
    }
    if (lost.empty()) lost = std::move(all);
  }
  HandBack(job, index, StrCat("an input is lost: ", request.message()));
  if (job->job().state() != v1::Job::RUNNING) return;
  for (const v1::StreamName& stream : lost) {
    const auto found = job->task_index.find(StrCat(job->name(), "/tasks/", stream.task()));
    const std::vector<FreedLane> dropped = DropLane(job, stream);
    if (dropped.empty()) continue;
    for (const FreedLane& lane : dropped) {
      fleet_.QueueFree(lane.session, lane.stream, now_.monotonic);
    }
    TaskState& producer = job->tasks[found->second];
    if (!producer.running() || producer.task().attempt() != stream.attempt()) continue;
    if (WorkerState* at = fleet_.FindSession(producer.record.session()); at && at->slot) {
      at->slot->revoked = true;
      at->slot->suspect = true;
    }
    ReturnTask(job, found->second, events::kTaskRevoked, "a reader could not reach its stream");
  }
}

void CoreImpl::ReturnTask(JobState* job, int index, std::string_view event,
                          const std::string& message) {
  TaskState& task = job->tasks[index];
  if (task.is_stage()) {
    fleet_.QueueFree(task.record.session(), StreamNameOf(*job, task, task.task().attempt(), ""),
                     now_.monotonic);
  }
  const std::string worker = task.task().worker();
  EndAttempt(job, index);
  task.task().set_message(message.substr(0, kMaxMessage));
  if (task.task().spec().has_validate()) {
    job->validate_pending_since = now_.monotonic;
    job->job().mutable_validation()->set_state(v1::Validation::PENDING);
  }
  Event(job, task.task().name(), event,
        StrCat("attempt ", task.task().attempt(), " on ", worker, ": ", message));
  TouchTask(job, index);
}

void CoreImpl::HandBack(JobState* job, int index, const std::string& message) {
  TaskState& task = job->tasks[index];
  task.record.set_handed_back(task.record.handed_back() + 1);
  if (task.record.handed_back() > kFreeHandBacks) {
    v1::FinishTaskRequest failure;
    failure.set_code(static_cast<int>(absl::StatusCode::kAborted));
    failure.set_message(
        StrCat("handed back ", task.record.handed_back(), " times, the last time: ", message));
    ChargeFailure(job, index, failure);
    return;
  }
  ReturnTask(job, index, events::kTaskHandedBack, message);
}

void CoreImpl::ChargeFailure(JobState* job, int index, const v1::FinishTaskRequest& request) {
  TaskState& task = job->tasks[index];
  task.task().set_failures(task.task().failures() + 1);
  if (task.task().failures() >= options_.max_failures) {
    FailTask(
        job, index, request.code(),
        StrCat("failed ", task.task().failures(), " times, the last time: ", request.message()));
    return;
  }
  ReturnTask(job, index, events::kTaskRetried, request.message());
}

}  // namespace gradq
