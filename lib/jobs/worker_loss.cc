// Workers that leave or are lost, and what that does to the tasks they ran.

#include <optional>
#include <string>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/core_internal.h"
#include "lib/jobs/events.h"
#include "lib/jobs/views.h"

namespace gradq {

absl::Status CoreImpl::DrainWorker(Now now, const v1::DrainWorkerRequest& request) {
  Begin(now);
  const bool itself = !request.session().empty();
  WorkerState* worker = itself ? fleet_.FindSession(request.session())
                               : fleet_.FindName(request.worker().rfind("workers/", 0) == 0
                                                     ? request.worker()
                                                     : StrCat("workers/", request.worker()));
  if (worker == nullptr || !worker->alive() || worker->ghost) {
    GRADQ_RETURN_IF_ERROR(Flush());
    return absl::NotFoundError(
        StrCat("no such worker: ", itself ? request.session() : request.worker()));
  }
  if (worker->info.state() != v1::Worker::DRAINING) {
    worker->info.set_state(v1::Worker::DRAINING);
    Event(nullptr, worker->info.name(), events::kWorkerDraining, "");
  }
  if (itself) {
    worker->leaving = true;
    if (!worker->slot) LoseWorker(worker, v1::Worker::GONE, false, "drained");
  }
  return Flush();
}

void CoreImpl::ClearSlot(WorkerState* worker) {
  const absl::StatusOr<std::string> owner = JobOfTask(worker->slot->task);
  worker->slot.reset();
  worker->info.clear_task();
  if (JobState* job = owner.ok() ? FindJob(*owner) : nullptr) MaybeFinishCancel(job);
}

void CoreImpl::LoseWorker(WorkerState* worker, v1::Worker::State state, bool counted,
                          const std::string& why) {
  const std::string session = worker->session;
  const std::optional<Slot> slot = worker->slot;
  Event(nullptr, worker->info.name(),
        state == v1::Worker::GONE ? events::kWorkerGone : events::kWorkerLost, why);
  fleet_.Retire(worker, state);
  for (auto& [id, job] : jobs_) {
    if (IsTerminal(job.job().state()) || job.job().state() == v1::Job::QUEUED) continue;
    bool counted_here = false;
    for (int index : DropSession(&job, session)) {
      counted_here = true;
      if (!IsTerminal(job.job().state())) LoseAttempt(&job, index, counted, why);
    }
    if (counted && !counted_here && slot && slot->suspect) {
      // Its reader was quicker than the TTL: the attempt is revoked, but it was this task under
      // which the worker died.
      const auto found = job.task_index.find(slot->task);
      if (found != job.task_index.end() && job.job().state() == v1::Job::RUNNING) {
        TaskState& task = job.tasks[found->second];
        task.task().set_lost_workers(task.task().lost_workers() + 1);
        TouchTask(&job, found->second);
        if (!task.succeeded() && task.task().lost_workers() >= options_.max_lost_workers) {
          FailTask(&job, found->second, static_cast<int>(absl::StatusCode::kUnavailable),
                   StrCat("lost ", task.task().lost_workers(), " workers, the last one: ", why));
        }
      }
    }
    if (job.job().state() == v1::Job::RUNNING) SettleJob(&job);
    MaybeFinishCancel(&job);
  }
}

void CoreImpl::LoseAttempt(JobState* job, int index, bool counted, const std::string& why) {
  TaskState& task = job->tasks[index];
  const std::string worker = task.task().worker();
  ReturnTask(job, index, events::kTaskLost, why);
  if (!counted) return;
  task.task().set_lost_workers(task.task().lost_workers() + 1);
  if (task.task().lost_workers() >= options_.max_lost_workers) {
    FailTask(
        job, index, static_cast<int>(absl::StatusCode::kUnavailable),
        StrCat("lost ", task.task().lost_workers(), " workers, the last one ", worker, ": ", why));
  }
}

void CoreImpl::ExpireWorkers() {
  for (auto& [name, worker] : fleet_.workers()) {
    if (!worker.alive()) continue;
    if (now_.monotonic - worker.last_seen >= options_.lease_ttl) {
      LoseWorker(&worker, v1::Worker::LOST, !worker.ghost, "its lease expired");
      continue;
    }
    if (!worker.slot || worker.slot->revoked || worker.ghost) continue;
    if (now_.monotonic - worker.slot->last_listed <= options_.lease_ttl) continue;
    const auto [job, index] = FindTask(worker.slot->task);
    const bool live = IsLive(worker.session, worker.slot->task, worker.slot->attempt);
    ClearSlot(&worker);
    if (!live) continue;
    HandBack(job, index, "the worker is alive but does not run it");
    if (job->job().state() == v1::Job::RUNNING) SettleJob(job);
  }
}

}  // namespace gradq
