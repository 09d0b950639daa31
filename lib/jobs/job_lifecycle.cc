// What happens to a job as a whole: its plan, its phases, its end.

#include <algorithm>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/plan.h"
#include "lib/jobs/core_internal.h"
#include "lib/jobs/events.h"
#include "lib/jobs/plan_messages.h"
#include "lib/jobs/proto_time.h"
#include "lib/jobs/round_decision.h"
#include "lib/jobs/task_graph.h"
#include "lib/jobs/views.h"

namespace gradq {

// --- start ---

bool CoreImpl::StartJob(JobState* job, const v1::Worker& asking) {
  if (absl::Status planned = PlanFor(job, asking); !planned.ok()) {
    FailJob(job, static_cast<int>(planned.code()), std::string(planned.message()));
    return false;
  }
  job->job().set_state(v1::Job::RUNNING);
  *job->job().mutable_start_time() = ToTimestamp(now_.wall);
  for (size_t i = 0; i < job->tasks.size(); ++i) TouchTask(job, static_cast<int>(i));
  Event(job, job->name(), events::kJobRunning,
        StrCat(job->job().plan().first_block_size(), " stages, ", job->tasks.size(), " tasks"));
  TouchJob(*job);
  return true;
}

absl::Status CoreImpl::PlanFor(JobState* job, const v1::Worker& asking) {
  const v1::JobSpec& spec = job->job().spec();
  PlanInputs inputs;
  GRADQ_ASSIGN_OR_RETURN(inputs.geometry, ParseGeometry(job->record.config_json()));
  GRADQ_ASSIGN_OR_RETURN(inputs.recipe, RecipeOf(spec.recipe()));
  inputs.sequences = spec.sequences();
  inputs.length = spec.length();
  inputs.chunk_sequences = spec.chunk_sequences();
  inputs.stages = spec.stages();
  inputs.compute_bytes = spec.compute_dtype() == "bfloat16" ? 2 : 4;
  inputs.workers = 0;
  for (const auto& [name, worker] : fleet_.workers()) {
    if (!worker.ready() || worker.info.kind() != v1::Worker::COMPUTE) continue;
    if (worker.info.numerics_class() != asking.numerics_class()) continue;
    ++inputs.workers;
    const int64_t memory = worker.info.memory_bytes();
    if (memory > 0 && (inputs.worker_memory_bytes == 0 || memory < inputs.worker_memory_bytes)) {
      inputs.worker_memory_bytes = memory;
    }
  }
  GRADQ_ASSIGN_OR_RETURN(const Plan made, MakePlan(inputs));

  v1::JobPlan& plan = *job->job().mutable_plan();
  for (int block : made.first_block) plan.add_first_block(block);
  plan.set_blocks(static_cast<int>(inputs.geometry.blocks));
  plan.set_chunks(made.chunks);
  plan.set_chunk_sequences(spec.chunk_sequences());
  plan.set_sequences(spec.sequences());
  plan.set_length(spec.length());
  for (const LinearShape& linear : LinearsOf(inputs.geometry)) plan.add_linears(linear.name);
  for (const std::string& statistic : made.statistics) plan.add_statistics(statistic);
  plan.set_needs_backward(made.needs_backward);
  plan.set_worker_memory_bytes(made.worker_memory_bytes);
  plan.set_disk_bytes(made.spool_bytes + made.shard_bytes + made.artifact_bytes);
  for (const Round& round : made.rounds) *plan.add_rounds() = MessageOf(round);
  job->record.set_statistics_bytes(made.statistics_bytes);
  return BuildTaskGraph(inputs.geometry, job);
}

// --- running ---

void CoreImpl::SettleJob(JobState* job) {
  do {
    SettleResult result;
    Settle(job, &result);
    ApplySettle(job, result);
  } while (DecideRounds(job));
  if (job->job().state() != v1::Job::RUNNING) return;  // a decision failed
  bool all = job->Solved(job->final_round);
  for (size_t r = 0; r < job->rounds.size(); ++r) all = all && job->Decided(static_cast<int>(r));
  if (all) {
    StartAssembly(job, false);
    return;
  }
  // With nothing left of it, the job's numerics class binds nobody: workers of another one may
  // start over.
  const bool traces =
      std::any_of(job->tasks.begin(), job->tasks.end(),
                  [](const TaskState& task) {
                    return task.running() || task.out ||
                           ((task.is_solve() || task.is_score()) && task.succeeded());
                  }) ||
      std::any_of(job->linears.begin(), job->linears.end(), [](const LinearState& linear) {
        return std::any_of(linear.rounds.begin(), linear.rounds.end(),
                           [](const LinearRound& round) { return round.statistic.has_value(); });
      });
  if (!traces && !job->job().plan().numerics_class().empty()) {
    job->job().mutable_plan()->clear_numerics_class();
    TouchJob(*job);
  }
}

bool CoreImpl::DecideRounds(JobState* job) {
  bool any = false;
  for (size_t r = 0; r < job->rounds.size(); ++r) {
    const int round = static_cast<int>(r), index = job->rounds[r].decide;
    if (index < 0 || job->Decided(round) || !DecisionReady(*job, round)) continue;
    TaskState& task = job->tasks[index];
    task.task().set_attempt(task.task().attempt() + 1);
    *task.task().mutable_start_time() = ToTimestamp(now_.wall);
    absl::StatusOr<v1::Decision> made = MakeDecision(*job, ShardOwner(*job), round);
    if (!made.ok()) {
      FailTask(job, index, static_cast<int>(made.status().code()),
               std::string(made.status().message()));
      return false;
    }
    *task.task().mutable_result()->mutable_decision() = *std::move(made);
    task.task().set_state(v1::Task::SUCCEEDED);
    *task.task().mutable_end_time() = ToTimestamp(now_.wall);
    Event(job, task.task().name(), events::kTaskSucceeded,
          StrCat("attempt ", task.task().attempt(), " in the coordinator"));
    TouchTask(job, index);
    any = true;
  }
  return any;
}

void CoreImpl::ApplySettle(JobState* job, const SettleResult& result) {
  for (const StoppedAttempt& stopped : result.stopped) {
    const std::string& name = job->tasks[stopped.task].task().name();
    WorkerState* worker = fleet_.FindSession(stopped.session);
    if (worker != nullptr && worker->slot && worker->slot->task == name &&
        worker->slot->attempt == stopped.attempt) {
      worker->slot->revoked = true;
    }
    Event(job, name, events::kTaskRevoked,
          StrCat("attempt ", stopped.attempt, ": ", stopped.reason));
  }
  for (const FreedLane& freed : result.freed) {
    fleet_.QueueFree(freed.session, freed.stream, now_.monotonic);
  }
  for (int task : result.reopened) {
    Event(job, job->tasks[task].task().name(), events::kTaskReopened, "");
  }
  for (int task : result.changed) TouchTask(job, task);
}

// --- assembly ---

void CoreImpl::StartAssembly(JobState* job, bool may_be_renamed) {
  job->job().set_state(v1::Job::ASSEMBLING);
  TaskState& task = job->tasks[job->assemble];
  task.task().set_state(v1::Task::RUNNING);
  task.task().set_attempt(task.task().attempt() + 1);
  *task.task().mutable_start_time() = ToTimestamp(now_.wall);
  TouchTask(job, job->assemble);
  Event(job, job->name(), events::kJobAssembling, "");
  staged_actions_.push_back(StartAssemble{job->name(), may_be_renamed});
}

bool CoreImpl::BeginRename(Now now, const std::string& name) {
  Begin(now);
  JobState* job = FindJob(name);
  bool granted = false;
  if (job != nullptr && job->job().state() == v1::Job::CANCELLING) {
    MaybeFinishCancel(job, true);
  } else if (job != nullptr && job->job().state() == v1::Job::ASSEMBLING) {
    job->record.set_renaming(true);
    Event(job, name, events::kJobRenaming, "");
    TouchJob(*job);
    granted = true;
  }
  if (Flush().ok()) return granted;
  if (granted) {
    // Not durable, so not granted; the next commit stores that as well.
    job->record.set_renaming(false);
    TouchJob(*job);
  }
  return false;
}

absl::Status CoreImpl::FinishAssemble(Now now, const std::string& name,
                                      const absl::StatusOr<AssembleResult>& result) {
  Begin(now);
  JobState* job = FindJob(name);
  if (job == nullptr) return absl::NotFoundError(StrCat("no such job: ", name));
  absl::Status answer;
  if (job->job().state() == v1::Job::CANCELLING) {
    MaybeFinishCancel(job, true);
  } else if (job->job().state() != v1::Job::ASSEMBLING) {
    const bool resent = result.ok() && !job->job().artifact_digest().empty() &&
                        job->job().artifact_digest() == result->digest;
    if (!resent) {
      answer = absl::FailedPreconditionError(
          StrCat("job is not assembling: ", name, ", ", v1::Job::State_Name(job->job().state())));
    }
  } else if (!result.ok()) {
    FailTask(job, job->assemble, static_cast<int>(result.status().code()),
             std::string(result.status().message()));
  } else {
    TaskState& task = job->tasks[job->assemble];
    task.task().set_state(v1::Task::SUCCEEDED);
    *task.task().mutable_end_time() = ToTimestamp(now_.wall);
    TouchTask(job, job->assemble);
    job->job().set_artifact_path(result->artifact_path);
    job->job().set_artifact_digest(result->digest);
    job->job().mutable_progress()->set_artifact_bytes(result->bytes);
    job->job().mutable_progress()->set_average_bits(result->average_bits);
    Event(job, name, events::kJobPublished, result->digest);
    // The artifact holds their content now.
    if (!KeepsShards(*job)) staged_actions_.push_back(RemoveJobData{name, true});
    if (job->validate < 0) {
      EndJob(job, v1::Job::SUCCEEDED, events::kJobSucceeded, "");
    } else {
      job->job().set_state(v1::Job::VALIDATING);
      job->validate_pending_since = now_.monotonic;
      Event(job, name, events::kJobValidating, "");
    }
  }
  GRADQ_RETURN_IF_ERROR(Flush());
  return answer;
}

// --- ends ---

void CoreImpl::EndValidation(JobState* job, v1::Validation::State state,
                             const std::string& message) {
  job->job().mutable_validation()->set_state(state);
  job->job().mutable_validation()->set_message(message);
  EndJob(job, v1::Job::SUCCEEDED, events::kJobSucceeded, message);
}

void CoreImpl::FailTask(JobState* job, int index, int code, const std::string& message) {
  TaskState& task = job->tasks[index];
  task.task().set_state(v1::Task::FAILED);
  task.task().set_message(message);
  task.record.clear_session();
  *task.task().mutable_end_time() = ToTimestamp(now_.wall);
  Event(job, task.task().name(), events::kTaskFailed, message);
  TouchTask(job, index);
  const std::string reason = StrCat(LastPart(task.task().name()), ": ", message);
  if (task.task().spec().has_validate()) {
    EndValidation(job, v1::Validation::FAILED, reason);  // the artifact stands
  } else {
    FailJob(job, code, reason);
  }
}

void CoreImpl::FailJob(JobState* job, int code, const std::string& message) {
  job->job().set_code(code == 0 ? static_cast<int>(absl::StatusCode::kUnknown) : code);
  EndJob(job, v1::Job::FAILED, events::kJobFailed, message);
}

void CoreImpl::EndJob(JobState* job, v1::Job::State state, std::string_view event,
                      const std::string& message) {
  job->job().set_state(state);
  job->job().set_message(message);
  *job->job().mutable_end_time() = ToTimestamp(now_.wall);
  RevokeSlots(*job);
  for (size_t i = 0; i < job->tasks.size(); ++i) {
    TaskState& task = job->tasks[i];
    task.out.reset();
    task.accumulating.clear();
    if (task.succeeded() || task.task().state() == v1::Task::FAILED ||
        task.task().state() == v1::Task::CANCELLED) {
      continue;
    }
    task.task().set_state(v1::Task::CANCELLED);
    task.record.clear_session();
    TouchTask(job, static_cast<int>(i));
  }
  for (LinearState& linear : job->linears) {
    for (LinearRound& round : linear.rounds) round.statistic.reset();
  }
  v1::StreamName everything;
  everything.set_job(job->name());
  for (const std::string& session : job->sessions) {
    fleet_.QueueFree(session, everything, now_.monotonic);
  }
  job->sessions.clear();
  cancel_since_.erase(job->name());
  if (state != v1::Job::SUCCEEDED) {
    if (job->job().validation().state() == v1::Validation::PENDING) {
      job->job().mutable_validation()->set_state(v1::Validation::SKIPPED);
      job->job().mutable_validation()->set_message("the job has no artifact");
    }
    staged_actions_.push_back(RemoveJobData{job->name()});
  } else if (KeepsShards(*job)) {
    *job->job().mutable_shards_expire_time() = ToTimestamp(now_.wall + options_.retention);
  }
  Event(job, job->name(), event, message);
  TouchJob(*job);
}

void CoreImpl::RevokeSlots(const JobState& job) {
  const std::string prefix = job.name() + "/";
  for (auto& [name, worker] : fleet_.workers()) {
    if (worker.slot && worker.slot->task.compare(0, prefix.size(), prefix) == 0) {
      worker.slot->revoked = true;
    }
  }
}

// --- cancel ---

absl::StatusOr<v1::Job> CoreImpl::CancelJob(Now now, const v1::CancelJobRequest& request) {
  Begin(now);
  GRADQ_RETURN_IF_ERROR(GetJob(request.name()).status());
  JobState* job = FindJob(request.name());
  const v1::Job::State state = job->job().state();
  absl::Status answer;
  if (state == v1::Job::CANCELLING || state == v1::Job::CANCELLED) {
    // Idempotent, also for the etag from before.
  } else if (!request.etag().empty() && request.etag() != job->job().etag()) {
    answer = absl::AbortedError(
        StrCat("the job changed since it was read: ", request.name(), ", ", request.etag()));
  } else if (IsTerminal(state) || state == v1::Job::VALIDATING || job->record.renaming()) {
    answer = absl::FailedPreconditionError(StrCat(
        "the job can't be cancelled any more: ", request.name(), ", ", v1::Job::State_Name(state)));
  } else {
    job->job().set_state(v1::Job::CANCELLING);
    Event(job, job->name(), events::kJobCancelling, "");
    TouchJob(*job);
    RevokeSlots(*job);
    cancel_since_[job->name()] = now_.monotonic;
    for (size_t i = 0; i < job->tasks.size(); ++i) {
      TaskState& task = job->tasks[i];
      if (static_cast<int>(i) == job->assemble) continue;
      if (task.task().state() != v1::Task::PENDING && !task.running()) continue;
      task.task().set_state(v1::Task::CANCELLED);
      task.record.clear_session();
      TouchTask(job, static_cast<int>(i));
    }
    MaybeFinishCancel(job);
  }
  GRADQ_RETURN_IF_ERROR(Flush());
  if (!answer.ok()) return answer;
  return job->job();
}

void CoreImpl::MaybeFinishCancel(JobState* job, bool waited_long_enough) {
  if (job->job().state() != v1::Job::CANCELLING) return;
  if (!waited_long_enough) {
    if (Assembles(*job)) return;
    const std::string prefix = job->name() + "/";
    for (const auto& [name, worker] : fleet_.workers()) {
      if (worker.slot && worker.slot->task.compare(0, prefix.size(), prefix) == 0) return;
    }
  }
  EndJob(job, v1::Job::CANCELLED, events::kJobCancelled, "");
}

void CoreImpl::ExpireJobs() {
  for (auto& [id, job] : jobs_) {
    ExpireShards(&job);
    if (job.job().state() == v1::Job::VALIDATING && !job.tasks[job.validate].running() &&
        now_.monotonic - job.validate_pending_since >= ValidateTimeout(job.job().spec())) {
      EndValidation(&job, v1::Validation::SKIPPED,
                    StrCat("no inference worker took the task within ",
                           absl::ToInt64Seconds(ValidateTimeout(job.job().spec())), " s"));
    }
  }
  // A worker that keeps heartbeating but never stops must not hold up the answer: its attempt is
  // fenced.
  const std::map<std::string, absl::Duration> cancelling = cancel_since_;
  for (const auto& [name, since] : cancelling) {
    if (now_.monotonic - since < options_.lease_ttl) continue;
    JobState* job = FindJob(name);
    if (!Assembles(*job)) MaybeFinishCancel(job, true);
  }
}

}  // namespace gradq
