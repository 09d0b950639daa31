#include "lib/jobs/scheduler.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "lib/base/strings.h"
#include "lib/jobs/lineage.h"

namespace gradq {
namespace {

// True when `worker` failed this task before and another one could take it.
bool Avoided(const JobState& job, const TaskState& task, const WorkerState& worker,
             const Fleet& fleet) {
  if (task.avoid.count(worker.info.name()) == 0) return false;
  const std::string& numerics = job.job().plan().numerics_class();
  for (const auto& [name, other] : fleet.workers()) {
    if (!other.ready() || other.info.kind() != worker.info.kind()) continue;
    if (task.avoid.count(name) > 0) continue;
    if (worker.info.kind() == v1::Worker::COMPUTE && !numerics.empty() &&
        other.info.numerics_class() != numerics) {
      continue;
    }
    return true;
  }
  return false;
}

bool IsPending(const TaskState& task) { return task.task().state() == v1::Task::PENDING; }

// The stream is complete, or its producer is running elsewhere and will get there.
bool InputReady(const JobState& job, int producer, const WorkerState& worker) {
  if (producer < 0) return true;
  const std::optional<Stream>& out = job.tasks[producer].out;
  return out.has_value() && (out->complete || out->session != worker.session);
}

// Statistics on another worker are left to it while it can start on them itself.
bool MayPull(const WorkerState* source, int pending_there) {
  if (source == nullptr || !source->ready()) return true;
  const bool busy = source->slot.has_value();
  return pending_there >= (busy ? 1 : 2);
}

// A score or solve, and what speaks for it.
struct LinearTask {
  int task = -1;
  bool local = false;  // its statistics lie here, or it needs none
  int round = 0;
  double cost = 0;

  bool Before(const LinearTask& other) const {
    return std::tuple(!local, round, -cost) < std::tuple(!other.local, other.round, -other.cost);
  }
};

bool MayLease(const JobState& job, const TaskState& task) {
  return IsPending(task) && MayStart(job, task);
}

const std::optional<Stream>* StatisticOf(const JobState& job, const TaskState& task) {
  if (task.statistics_round < 0) return nullptr;
  return &job.linears[task.linears[0]].rounds[task.statistics_round].statistic;
}

// Calls use(task index) for the scores and solves of all rounds.
template <typename Use>
void ForEachLinearTask(const JobState& job, const Use& use) {
  for (const LinearState& linear : job.linears) {
    for (const LinearRound& round : linear.rounds) {
      if (round.score >= 0) use(linear, round.score);
      if (round.solve >= 0) use(linear, round.solve);
    }
  }
}

std::optional<int> ChooseLinearTask(const JobState& job, const WorkerState& worker,
                                    const Fleet& fleet) {
  std::map<std::string_view, int> pending_at;  // by session
  ForEachLinearTask(job, [&](const LinearState&, int index) {
    const std::optional<Stream>* statistic = StatisticOf(job, job.tasks[index]);
    if (statistic != nullptr && *statistic && MayLease(job, job.tasks[index]))
      ++pending_at[(*statistic)->session];
  });
  LinearTask best;
  ForEachLinearTask(job, [&](const LinearState& linear, int index) {
    const TaskState& task = job.tasks[index];
    if (!MayLease(job, task) || Avoided(job, task, worker, fleet)) return;
    LinearTask here = {index, true, task.round, linear.cost};
    if (const std::optional<Stream>* statistic = StatisticOf(job, task)) {
      if (!*statistic) return;
      const std::string& session = (*statistic)->session;
      here.local = session == worker.session;
      const WorkerState* source = fleet.FindSession(session);
      const bool refused =
          source != nullptr && task.avoid.count(source->info.name()) > 0;  // it won't take this one
      if (!here.local && !refused && !MayPull(source, pending_at[session])) return;
    }
    if (best.task < 0 || here.Before(best)) best = here;
  });
  return best.task < 0 ? std::nullopt : std::optional<int>(best.task);
}

bool Fits(const JobState& job, const WorkerState& worker, const HeldStatistics& held) {
  const int64_t bytes = held.workable + held.waiting, memory = worker.info.memory_bytes();
  return bytes == 0 || memory == 0 || job.job().plan().worker_memory_bytes() + bytes <= memory;
}

// Whether a stage that accumulates may go to a worker with what it holds already. One that holds
// statistics it can work off does that first. Those that wait for a later round can't be got rid
// of: then another worker with room takes the stage, and where there is none this one does (its
// streams are spooled), so that nothing waits for ever.
bool MayAccumulate(const JobState& job, const TaskState& task, const WorkerState& worker,
                   const Fleet& fleet, const HeldBySession& held) {
  const auto held_by = [&](const WorkerState& any) {
    const auto found = held.find(any.session);
    return found == held.end() ? HeldStatistics{} : found->second;
  };
  if (Fits(job, worker, held_by(worker))) return true;
  if (held_by(worker).workable > 0) return false;
  const std::string& numerics = job.job().plan().numerics_class();
  const std::string own_tasks = StrCat(job.name(), "/");
  return std::none_of(fleet.workers().begin(), fleet.workers().end(), [&](const auto& entry) {
    const WorkerState& other = entry.second;
    const bool takes_part =
        !other.slot || other.slot->task.compare(0, own_tasks.size(), own_tasks) == 0;
    return other.ready() && other.session != worker.session && takes_part &&
           other.info.kind() == v1::Worker::COMPUTE &&
           (numerics.empty() || other.info.numerics_class() == numerics) &&
           task.avoid.count(entry.first) == 0 && Fits(job, other, held_by(other));
  });
}

}  // namespace

void AddHeldStatistics(const JobState& job, HeldBySession* held) {
  // Whole stages; at least a byte per stage, so that "holds some" shows even when the plan knows no
  // size.
  const int64_t bytes = std::max<int64_t>(1, job.record.statistics_bytes());
  std::map<std::tuple<std::string_view, size_t, int>, bool> stages;  // whether it is workable
  for (const LinearState& linear : job.linears) {
    for (size_t r = 0; r < linear.rounds.size(); ++r) {
      if (!linear.rounds[r].statistic) continue;
      ForEachReader(job, linear, static_cast<int>(r), [&](int reader) {
        const TaskState& task = job.tasks[reader];
        if (task.succeeded()) return;
        bool& workable = stages[{linear.rounds[r].statistic->session, r, linear.stage}];
        workable |= MayStart(job, task);
      });
    }
  }
  for (const auto& [stage, workable] : stages) {
    HeldStatistics& sum = (*held)[std::string(std::get<0>(stage))];
    (workable ? sum.workable : sum.waiting) += bytes;
  }
}

std::optional<int> ChooseComputeTask(const JobState& job, const WorkerState& worker,
                                     const Fleet& fleet, const HeldBySession& held) {
  const v1::JobPlan& plan = job.job().plan();
  if (!plan.numerics_class().empty() && plan.numerics_class() != worker.info.numerics_class())
    return std::nullopt;
  if (std::optional<int> task = ChooseLinearTask(job, worker, fleet)) return task;

  std::optional<int> forward;
  for (int index : job.stage_order) {
    const TaskState& task = job.tasks[index];
    if (!MayLease(job, task)) continue;
    if (!InputReady(job, task.activations, worker) || !InputReady(job, task.gradients, worker))
      continue;
    const bool accumulates =
        task.accumulates && std::any_of(task.linears.begin(), task.linears.end(), [&](int l) {
          const LinearState& linear = job.linears[l];
          return !linear.rounds[task.round].statistic && StatisticWanted(job, linear, task.round);
        });
    if (accumulates && !MayAccumulate(job, task, worker, fleet, held)) continue;
    if (Avoided(job, task, worker, fleet)) continue;
    if (task.task().spec().run_stage().direction() == v1::RunStage::BACKWARD) return index;
    if (!forward) forward = index;
  }
  return forward;
}

std::optional<int> ChooseValidate(const JobState& job, const WorkerState& worker,
                                  const Fleet& fleet) {
  if (job.validate < 0 || !IsPending(job.tasks[job.validate])) return std::nullopt;
  if (Avoided(job, job.tasks[job.validate], worker, fleet)) return std::nullopt;
  return job.validate;
}

}  // namespace gradq
