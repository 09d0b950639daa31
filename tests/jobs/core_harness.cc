#include "tests/jobs/core_harness.h"

#include <algorithm>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {

void CoreHarness::Restart() {
  core.reset();
  core = CoordinatorCore::Open(&store, options, now()).value();
}

void CoreHarness::Pass(absl::Duration time, const std::vector<std::string>& beating) {
  const absl::Duration end = clock.Monotonic() + time;
  while (clock.Monotonic() < end) {
    clock.Advance(std::min(end - clock.Monotonic(), options.lease_ttl / 6));
    for (const std::string& session : beating) Beat(session);
    GRADQ_CHECK(core->Tick(now()).ok());
  }
}

std::string CoreHarness::Register(const std::string& name, int64_t memory,
                                  const std::string& numerics, v1::Worker::Kind kind) {
  v1::RegisterWorkerRequest request;
  request.set_name(name);
  request.set_kind(kind);
  request.set_advertise(StrCat(name, ":1"));
  request.set_memory_bytes(memory);
  request.set_numerics_class(numerics);
  return core->RegisterWorker(now(), request)->session();
}

std::string CoreHarness::LeaseName(const std::string& session) {
  const auto lease = Lease(session);
  return lease ? lease->task().substr(lease->task().rfind('/') + 1) : "";
}

absl::Status CoreHarness::Finish(const std::string& session, const v1::Lease& lease,
                                 v1::FinishTaskRequest::Outcome outcome,
                                 const std::string& message) {
  v1::FinishTaskRequest request;
  request.set_session(session);
  request.set_task(lease.task());
  request.set_attempt(lease.attempt());
  request.set_outcome(outcome);
  request.set_message(message);
  if (outcome == v1::FinishTaskRequest::SUCCEEDED) *request.mutable_result() = FakeResult(lease);
  return core->FinishTask(now(), request);
}

v1::HeartbeatResponse CoreHarness::Beat(const std::string& session,
                                        const std::vector<std::pair<v1::Lease, int>>& running) {
  v1::HeartbeatRequest request;
  request.set_session(session);
  for (const auto& [lease, chunks] : running) {
    v1::AttemptProgress& progress = *request.add_running();
    progress.set_task(lease.task());
    progress.set_attempt(lease.attempt());
    progress.set_chunks_done(chunks);
  }
  return core->Heartbeat(now(), request).value();
}

std::vector<std::string> CoreHarness::WorkOff(const std::string& session) {
  std::vector<std::string> names;
  while (const auto lease = Lease(session)) {
    names.push_back(lease->task().substr(lease->task().rfind('/') + 1));
    GRADQ_CHECK(Finish(session, *lease).ok());
  }
  return names;
}

void CoreHarness::AssembleAll() {
  for (const Action& action : core->TakeActions()) {
    if (const auto* start = std::get_if<StartAssemble>(&action)) {
      GRADQ_CHECK(core->BeginRename(now(), start->job));
      GRADQ_CHECK(
          core->FinishAssemble(now(), start->job, AssembleResult{"/out", "digest", 10, 3.5}).ok());
    }
  }
}

v1::Task CoreHarness::Task(const std::string& id, const std::string& job) const {
  v1::ListTasksRequest request;
  request.set_parent(job);
  request.set_page_size(1000);
  const v1::ListTasksResponse response = core->ListTasks(request).value();
  for (const v1::Task& task : response.tasks()) {
    if (task.name() == StrCat(job, "/tasks/", id)) return task;
  }
  return {};
}

std::vector<std::string> CoreHarness::EventTypes(const std::string& job) const {
  v1::ListEventsRequest request;
  request.set_parent(job);
  request.set_page_size(1000);
  std::vector<std::string> types;
  const v1::ListEventsResponse response = core->ListEvents(request).value();
  for (const v1::Event& event : response.events()) types.push_back(event.type());
  return types;
}

}  // namespace gradq
