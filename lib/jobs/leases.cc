// Leases: which task a worker gets, and what it is told.

#include <set>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/core_internal.h"
#include "lib/jobs/events.h"
#include "lib/jobs/proto_time.h"
#include "lib/jobs/scheduler.h"
#include "lib/jobs/views.h"

namespace gradq {
namespace {

// The decisions that a score or solve follows.
void AddDecision(const JobState& job, const TaskState& task, v1::Lease* lease) {
  if (!task.is_score() && !task.is_solve()) return;
  const int l = task.linears[0];
  v1::LinearDecision decision;
  bool any = false;
  const auto take = [&](int round) -> const v1::LinearDecision* {
    const int decide = job.rounds[round].decide;
    if (decide < 0 || !job.tasks[decide].succeeded()) return nullptr;
    any = true;
    return &job.tasks[decide].task().result().decision().linears(l);
  };
  decision.set_linear(job.linears[l].name);
  for (int round = 0; round < task.round; ++round) {
    const v1::LinearDecision* earlier = take(round);
    if (earlier != nullptr && earlier->has_variant()) decision.set_variant(earlier->variant());
  }
  if (task.is_solve() && job.rounds[task.round].plan.decision != RoundDecision::kWidths) {
    if (const v1::LinearDecision* own = take(task.round)) decision.MergeFrom(*own);
  }
  if (any) *lease->mutable_decision() = std::move(decision);
}

void AddShards(const JobState& job, const TaskState& task, v1::Lease* lease) {
  const Round& round = job.rounds[task.round].plan;
  const int from = round.weights_round;
  if (from < 0 || task.task().spec().has_validate()) return;
  if (task.is_solve() && round.solve != RoundSolve::kDetach) return;
  std::set<int> variants;  // as the nodes name them
  for (const PathNode& node : round.nodes) variants.insert(node.variant);
  const int stage = task.is_stage() ? task.task().spec().run_stage().stage() : -1;
  for (size_t l = 0; l < job.linears.size(); ++l) {
    const LinearState& linear = job.linears[l];
    const bool wanted =
        task.is_stage() ? linear.stage == stage : task.linears[0] == static_cast<int>(l);
    if (!wanted) continue;
    for (const int variant : variants) {
      const int chosen = variant < 0 ? job.ChosenVariant(from, static_cast<int>(l)) : variant;
      const v1::ShardSummary& shard =
          job.tasks[linear.rounds[from].solve].task().result().shards(chosen);
      v1::ShardRef& ref = *lease->add_shards();
      ref.set_linear(linear.name);
      ref.set_variant(variant);
      ref.set_sha256(shard.sha256());
      ref.set_bytes(shard.bytes());
    }
  }
}

}  // namespace

std::optional<std::pair<JobState*, int>> CoreImpl::ChooseTask(const WorkerState& worker) {
  HeldBySession held;
  for (const auto& [id, job] : jobs_) {
    if (job.job().state() == v1::Job::RUNNING) AddHeldStatistics(job, &held);
  }
  const bool compute = worker.info.kind() == v1::Worker::COMPUTE;
  for (auto& [id, job] : jobs_) {
    const v1::Job::State state = job.job().state();
    std::optional<int> task;
    if (compute &&
        (state == v1::Job::RUNNING || (state == v1::Job::QUEUED && StartJob(&job, worker.info)))) {
      task = ChooseComputeTask(job, worker, fleet_, held);
    } else if (!compute && state == v1::Job::VALIDATING) {
      task = ChooseValidate(job, worker, fleet_);
    }
    if (task) return std::pair(&job, *task);
  }
  return std::nullopt;
}

void CoreImpl::GiveLease(JobState* job, int index, WorkerState* worker) {
  TaskState& task = job->tasks[index];
  const int64_t attempt = task.task().attempt() + 1;
  task.task().set_attempt(attempt);
  task.task().set_state(v1::Task::RUNNING);
  task.task().set_worker(worker->info.name());
  task.task().clear_message();
  task.task().set_chunks_done(0);
  *task.task().mutable_start_time() = ToTimestamp(now_.wall);
  task.task().clear_end_time();
  task.record.set_session(worker->session);
  const auto bind = [&](int producer) {
    return producer < 0 ? InputBinding{}
                        : InputBinding{producer, job->tasks[producer].out->attempt};
  };
  task.activations_bound = bind(task.activations);
  task.gradients_bound = bind(task.gradients);
  task.accumulating.clear();
  if (task.is_stage()) {
    for (int l : task.linears) {
      const LinearState& linear = job->linears[l];
      if (task.accumulates && !linear.rounds[task.round].statistic &&
          StatisticWanted(*job, linear, task.round)) {
        task.accumulating.push_back(l);
      }
    }
    if (!task.out && !task.readers.empty()) task.out = Stream{attempt, worker->session, false};
  }
  if (worker->info.kind() == v1::Worker::COMPUTE && job->job().plan().numerics_class().empty()) {
    job->job().mutable_plan()->set_numerics_class(worker->info.numerics_class());
  }
  if (task.task().spec().has_validate()) {
    job->job().mutable_validation()->set_state(v1::Validation::RUNNING);
  }
  job->sessions.insert(worker->session);
  worker->slot = Slot{task.task().name(), attempt, false, false, now_.monotonic};
  worker->info.set_task(task.task().name());
  Event(job, task.task().name(), events::kTaskLeased,
        StrCat("attempt ", attempt, " on ", worker->info.name()));
  TouchTask(job, index);
}

v1::Lease CoreImpl::BuildLease(const JobState& job, const TaskState& task) const {
  v1::Lease lease;
  lease.set_task(task.task().name());
  lease.set_attempt(task.task().attempt());
  *lease.mutable_spec() = task.task().spec();
  *lease.mutable_job() = ContextOf(job);
  lease.set_read_token(ReadToken(job));
  const auto locate = [&](int producer, const Stream& stream, std::string_view lane,
                          v1::StreamLocation* location) {
    *location->mutable_stream() = StreamNameOf(job, job.tasks[producer], stream.attempt, lane);
    location->set_worker(stream.session);
    if (const WorkerState* at = fleet_.FindSession(stream.session)) {
      location->set_address(at->info.advertise());
    }
  };
  const LiveInputs inputs = InputsOf(job, task);
  GRADQ_CHECK(inputs.complete);
  if (inputs.activations != nullptr) {
    locate(task.activations, *inputs.activations, "out", lease.mutable_activations());
  }
  if (inputs.gradients != nullptr) {
    locate(task.gradients, *inputs.gradients, "out", lease.mutable_gradients());
  }
  if (task.is_stage()) {
    v1::RunStage& run = *lease.mutable_spec()->mutable_run_stage();
    if (task.accumulating.empty()) run.clear_accumulate();
    if (task.accumulating.size() < task.linears.size()) {
      for (int l : task.accumulating) run.add_linears(job.linears[l].name);
    }
  } else if (inputs.statistic != nullptr) {
    const LinearState& linear = job.linears[task.linears[0]];
    locate(linear.rounds[task.statistics_round].producer, *inputs.statistic, StatisticLane(linear),
           lease.add_statistics());
  }
  AddDecision(job, task, &lease);
  AddShards(job, task, &lease);
  return lease;
}

}  // namespace gradq
