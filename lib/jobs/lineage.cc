#include "lib/jobs/lineage.h"

#include <algorithm>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

// nullptr when the stream it was bound to is gone.
const Stream* Bound(const JobState& job, const InputBinding& bound) {
  const std::optional<Stream>& out = job.tasks[bound.task].out;
  return out.has_value() && out->attempt == bound.attempt ? &*out : nullptr;
}

void FreeLane(const JobState& job, const TaskState& task, const Stream& stream,
              std::string_view lane, SettleResult* result) {
  result->freed.push_back({stream.session, StreamNameOf(job, task, stream.attempt, lane)});
}

void Stop(JobState* job, int index, std::string reason, SettleResult* result) {
  TaskState& task = job->tasks[index];
  const Stream whole{task.task().attempt(), task.record.session(), false};
  result->stopped.push_back({index, whole.attempt, whole.session, std::move(reason)});
  result->changed.push_back(index);
  FreeLane(*job, task, whole, "", result);
  EndAttempt(job, index);
}

// Some reader runs or must run and has not had all of the stream.
bool OutWanted(const JobState& job, const TaskState& task) {
  return std::any_of(task.readers.begin(), task.readers.end(),
                     [&](int reader) { return WillRead(job.tasks[reader]); });
}

// A linear that nobody can score or solve until this stage runs (again).
bool MissesStatistic(const JobState& job, const TaskState& task) {
  if (!task.accumulates) return false;
  return std::any_of(task.linears.begin(), task.linears.end(), [&](int l) {
    const LinearState& linear = job.linears[l];
    if (linear.rounds[task.round].statistic) return false;
    bool missed = false;
    // A running reader may have its statistics already; if not, it hands the attempt back and they
    // are missed then.
    ForEachReader(job, linear, task.round, [&](int reader) {
      missed |= !job.tasks[reader].succeeded() && !job.tasks[reader].running();
    });
    return missed;
  });
}

bool MissesLoss(const JobState& job, const TaskState& task) {
  return task.task().spec().run_stage().loss() && !LossKnown(job, task.round);
}

bool StillUseful(const JobState& job, const TaskState& task) {
  if (task.out && task.out->attempt == task.task().attempt() && OutWanted(job, task)) return true;
  if (MissesLoss(job, task)) return true;
  return std::any_of(task.accumulating.begin(), task.accumulating.end(), [&](int l) {
    const LinearState& linear = job.linears[l];
    return !linear.rounds[task.round].statistic && StatisticWanted(job, linear, task.round);
  });
}

void StopOrphans(JobState* job, SettleResult* result) {
  for (int index : job->stage_order) {
    const TaskState& task = job->tasks[index];
    if (!task.running() || !LacksChunks(task)) continue;
    if (!InputsOf(*job, task).complete) Stop(job, index, "an input stream is gone", result);
  }
}

// Readers before producers, so that what a reader needs is known when its producer is looked at.
void DeriveStates(JobState* job, SettleResult* result) {
  for (auto it = job->stage_order.rbegin(); it != job->stage_order.rend(); ++it) {
    TaskState& task = job->tasks[*it];
    if (task.running() && !StillUseful(*job, task)) Stop(job, *it, "not needed any more", result);
    if (task.running()) continue;
    const bool needed = (OutWanted(*job, task) && !task.out) || MissesStatistic(*job, task) ||
                        MissesLoss(*job, task);
    const v1::Task::State state = needed ? v1::Task::PENDING : v1::Task::SUCCEEDED;
    if (task.task().state() == state) continue;
    if (needed) {
      // A new need is a new run with its own budget of failures.
      task.task().set_failures(0);
      task.task().set_lost_workers(0);
      task.task().set_chunks_done(0);
      task.task().clear_end_time();
      task.record.set_handed_back(0);
      task.avoid.clear();
      result->reopened.push_back(*it);
    }
    task.task().set_state(state);
    result->changed.push_back(*it);
  }
}

// All that the stage's own round makes of its statistics is durable. Statistics kept for a later
// round don't keep streams as well: lost ones are made anew from the first stage on.
bool StageIsDurable(const JobState& job, const TaskState& stage) {
  const auto done = [&](int task) { return task < 0 || job.tasks[task].succeeded(); };
  return std::all_of(stage.linears.begin(), stage.linears.end(), [&](int l) {
    const LinearRound& linear = job.linears[l].rounds[stage.round];
    return done(linear.score) && done(linear.solve);
  });
}

void FreeUnneeded(JobState* job, SettleResult* result) {
  for (int index : job->stage_order) {
    TaskState& task = job->tasks[index];
    if (!task.out || !task.out->complete) continue;
    const bool keep = std::any_of(task.readers.begin(), task.readers.end(), [&](int reader) {
      const TaskState& consumer = job->tasks[reader];
      return WillRead(consumer) || !StageIsDurable(*job, consumer);
    });
    if (keep) continue;
    FreeLane(*job, task, *task.out, "out", result);
    task.out.reset();
  }
  for (LinearState& linear : job->linears) {
    for (size_t r = 0; r < linear.rounds.size(); ++r) {
      LinearRound& made = linear.rounds[r];
      if (!made.statistic || StatisticWanted(*job, linear, static_cast<int>(r))) continue;
      FreeLane(*job, job->tasks[made.producer], *made.statistic, StatisticLane(linear), result);
      made.statistic.reset();
    }
  }
}

// `out` names a lane that is gone. While another attempt of the task runs, that one's stream takes
// its place.
void DropOut(TaskState* task) {
  const int64_t gone = task->out->attempt;
  task->out.reset();
  if (task->running() && task->task().attempt() != gone) {
    task->out = Stream{task->task().attempt(), task->record.session(), false};
  }
}

}  // namespace

bool LacksChunks(const TaskState& task) {
  return task.task().chunks_done() < task.task().spec().run_stage().chunks();
}

bool StatisticWanted(const JobState& job, const LinearState& linear, int round) {
  bool wanted = false;
  ForEachReader(job, linear, round, [&](int reader) { wanted |= !job.tasks[reader].succeeded(); });
  return wanted;
}

bool LossKnown(const JobState& job, int round) {
  const RoundState& state = job.rounds[round];
  if (state.plan.decision != RoundDecision::kShrinkage || job.Decided(round)) return true;
  return job.tasks[state.loss].task().result().loss_tokens() > 0;
}

LiveInputs InputsOf(const JobState& job, const TaskState& task) {
  LiveInputs inputs;
  const auto follow = [&](const InputBinding& bound, const Stream** stream) {
    if (bound.task < 0) return;
    *stream = Bound(job, bound);
    if (*stream == nullptr) inputs.complete = false;
  };
  follow(task.activations_bound, &inputs.activations);
  follow(task.gradients_bound, &inputs.gradients);
  if (task.statistics_round >= 0) {
    const LinearRound& made = job.linears[task.linears[0]].rounds[task.statistics_round];
    if (made.statistic) inputs.statistic = &*made.statistic;
    if (!made.statistic) inputs.complete = false;
  }
  return inputs;
}

bool WillRead(const TaskState& task) {
  if (task.running()) return LacksChunks(task);
  return task.task().state() == v1::Task::PENDING;
}

std::vector<int> DropSession(JobState* job, std::string_view session) {
  std::vector<int> running;
  for (size_t i = 0; i < job->tasks.size(); ++i) {
    TaskState& task = job->tasks[i];
    if (task.running() && task.record.session() == session) running.push_back(static_cast<int>(i));
    if (task.out && task.out->session == session) DropOut(&task);
  }
  for (LinearState& linear : job->linears) {
    for (LinearRound& made : linear.rounds) {
      if (made.statistic && made.statistic->session == session) made.statistic.reset();
    }
  }
  return running;
}

std::vector<FreedLane> DropLane(JobState* job, const v1::StreamName& stream) {
  std::vector<FreedLane> dropped;
  const auto found = job->task_index.find(job->name() + "/tasks/" + stream.task());
  if (found == job->task_index.end()) return dropped;
  TaskState& task = job->tasks[found->second];
  const auto drop = [&](const Stream& gone, std::string_view lane) {
    dropped.push_back({gone.session, StreamNameOf(*job, task, gone.attempt, lane)});
  };
  const bool all = stream.lane().empty();
  if ((all || stream.lane() == "out") && task.out && task.out->attempt == stream.attempt()) {
    drop(*task.out, "out");
    DropOut(&task);
  }
  for (int l : task.linears) {
    LinearRound& made = job->linears[l].rounds[task.round];
    if (made.producer != found->second || !made.statistic) continue;
    if (made.statistic->attempt != stream.attempt()) continue;
    const std::string lane = StatisticLane(job->linears[l]);
    if (!all && stream.lane() != lane) continue;
    drop(*made.statistic, lane);
    made.statistic.reset();
  }
  return dropped;
}

void EndAttempt(JobState* job, int index) {
  TaskState& task = job->tasks[index];
  task.task().set_state(v1::Task::PENDING);
  task.task().clear_worker();
  task.task().set_chunks_done(0);
  task.record.clear_session();
  task.activations_bound = {};
  task.gradients_bound = {};
  task.accumulating.clear();
  if (task.out && task.out->attempt == task.task().attempt()) task.out.reset();
}

void CompleteStage(JobState* job, int index, const std::string& session, SettleResult* result) {
  TaskState& task = job->tasks[index];
  const Stream made{task.task().attempt(), session, true};
  if (task.out && task.out->attempt == made.attempt) {
    task.out->complete = true;
  } else if (!task.readers.empty()) {
    FreeLane(*job, task, made, "out", result);  // an earlier attempt's stream is complete and read
  }
  for (int l : task.accumulating) {
    std::optional<Stream>& statistic = job->linears[l].rounds[task.round].statistic;
    if (statistic) {
      FreeLane(*job, task, made, StatisticLane(job->linears[l]), result);
    } else {
      statistic = made;  // one that nobody wants is freed by the next Settle
    }
  }
  task.accumulating.clear();
}

void Settle(JobState* job, SettleResult* result) {
  UpdateBarriers(job);
  StopOrphans(job, result);
  DeriveStates(job, result);
  FreeUnneeded(job, result);
}

}  // namespace gradq
