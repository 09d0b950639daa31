#include "lib/jobs/scheduler.h"

#include <algorithm>
#include <set>
#include <string>

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

std::optional<int> ChooseSolve(const JobState& job, const WorkerState& worker, const Fleet& fleet) {
  std::map<std::string_view, int> pending_at;  // by session
  for (const LinearState& linear : job.linears) {
    if (linear.statistic && IsPending(job.tasks[linear.solve]))
      ++pending_at[linear.statistic->session];
  }
  const LinearState* best = nullptr;
  bool best_local = false;
  for (const LinearState& linear : job.linears) {
    const TaskState& task = job.tasks[linear.solve];
    if (!IsPending(task) || Avoided(job, task, worker, fleet)) continue;
    bool local = true;
    if (linear.producer >= 0) {
      if (!linear.statistic) continue;
      local = linear.statistic->session == worker.session;
      const WorkerState* source = fleet.FindSession(linear.statistic->session);
      const bool refused = source != nullptr &&
                           task.avoid.count(source->info.name()) > 0;  // it won't solve this one
      if (!local && !refused && !MayPull(source, pending_at[linear.statistic->session])) continue;
    }
    if (best == nullptr || (local && !best_local) ||
        (local == best_local && linear.cost > best->cost)) {
      best = &linear;
      best_local = local;
    }
  }
  return best == nullptr ? std::nullopt : std::optional<int>(best->solve);
}

}  // namespace

int64_t UnsolvedStatisticsBytes(const JobState& job, std::string_view session) {
  std::set<int> stages;
  for (const LinearState& linear : job.linears) {
    if (linear.statistic && linear.statistic->session == session && !job.durable(linear))
      stages.insert(linear.stage);
  }
  // At least a byte per stage, so that "holds some" shows even when the plan knows no size.
  return static_cast<int64_t>(stages.size()) * std::max<int64_t>(1, job.record.statistics_bytes());
}

std::optional<int> ChooseComputeTask(const JobState& job, const WorkerState& worker,
                                     const Fleet& fleet, int64_t unsolved_bytes) {
  const v1::JobPlan& plan = job.job().plan();
  if (!plan.numerics_class().empty() && plan.numerics_class() != worker.info.numerics_class())
    return std::nullopt;
  if (std::optional<int> solve = ChooseSolve(job, worker, fleet)) return solve;

  const int64_t memory = worker.info.memory_bytes();
  const bool both_fit =
      unsolved_bytes == 0 || memory == 0 || plan.worker_memory_bytes() + unsolved_bytes <= memory;
  std::optional<int> forward;
  for (int index : job.stage_order) {
    const TaskState& task = job.tasks[index];
    if (!IsPending(task)) continue;
    if (!InputReady(job, task.activations, worker) || !InputReady(job, task.gradients, worker))
      continue;
    const bool accumulates =
        task.accumulates && std::any_of(task.linears.begin(), task.linears.end(), [&](int l) {
          return !job.durable(job.linears[l]) && !job.linears[l].statistic;
        });
    if (accumulates && !both_fit) continue;
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
