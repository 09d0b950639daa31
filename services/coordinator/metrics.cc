#include "services/coordinator/metrics.h"

#include <string_view>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/events.h"
#include "lib/jobs/job_state.h"
#include "services/coordinator/pages.h"

namespace gradq {
namespace {

using Counts = std::map<std::string, int64_t>;

void AddFamily(std::string_view name, std::string_view type, std::string_view help,
               std::string_view label, const Counts& counts, std::string* text) {
  *text += StrCat("# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
  for (const auto& [value, count] : counts) {
    *text += StrCat(name, "{", label, "=\"", value, "\"} ", count, "\n");
  }
}

}  // namespace

absl::Status Metrics::ReadEvents() {
  while (true) {
    v1::ListEventsRequest request;
    request.set_after_seq(last_seq_);
    request.set_page_size(1000);
    GRADQ_ASSIGN_OR_RETURN(const v1::ListEventsResponse response,
                           coordinator_.WithCore([&](CoordinatorCore& core, Now) {
                             return core.ListEvents(request);
                           }));
    if (response.events().empty()) return absl::OkStatus();
    for (const v1::Event& event : response.events()) {
      ++events_[event.type()];
      last_seq_ = event.seq();
    }
  }
}

absl::StatusOr<std::string> Metrics::Scrape() {
  const std::lock_guard lock(mutex_);
  GRADQ_RETURN_IF_ERROR(ReadEvents());
  Counts jobs, tasks, workers;
  std::vector<std::string> names;
  GRADQ_RETURN_IF_ERROR(ForEachPage<v1::ListJobsResponse>(
      v1::ListJobsRequest(),
      [&](const v1::ListJobsRequest& request) {
        return coordinator_.WithCore(
            [&](CoordinatorCore& core, Now) { return core.ListJobs(request); });
      },
      [&](const v1::ListJobsResponse& page) {
        for (const v1::Job& job : page.jobs()) {
          ++jobs[v1::Job::State_Name(job.state())];
          if (!IsTerminal(job.state())) names.push_back(job.name());
        }
      }));
  for (const std::string& name : names) {
    v1::ListTasksRequest first;
    first.set_parent(name);
    GRADQ_RETURN_IF_ERROR(ForEachPage<v1::ListTasksResponse>(
        first,
        [&](const v1::ListTasksRequest& request) {
          return coordinator_.WithCore(
              [&](CoordinatorCore& core, Now) { return core.ListTasks(request); });
        },
        [&](const v1::ListTasksResponse& page) {
          for (const v1::Task& task : page.tasks()) ++tasks[v1::Task::State_Name(task.state())];
        }));
  }
  GRADQ_RETURN_IF_ERROR(ForEachPage<v1::ListWorkersResponse>(
      v1::ListWorkersRequest(),
      [&](const v1::ListWorkersRequest& request) {
        return coordinator_.WithCore(
            [&](CoordinatorCore& core, Now) { return core.ListWorkers(request); });
      },
      [&](const v1::ListWorkersResponse& page) {
        for (const v1::Worker& worker : page.workers()) {
          ++workers[v1::Worker::State_Name(worker.state())];
        }
      }));

  std::string text;
  AddFamily("gradq_jobs", "gauge", "Jobs by state.", "state", jobs, &text);
  AddFamily("gradq_tasks", "gauge", "Tasks of unfinished jobs by state.", "state", tasks, &text);
  AddFamily("gradq_workers", "gauge", "Registered workers by state.", "state", workers, &text);
  AddFamily("gradq_events_total", "counter", "Stored events by type.", "type", events_, &text);
  const auto lost = events_.find(std::string(events::kWorkerLost));
  text += StrCat(
      "# HELP gradq_worker_leases_expired_total Workers whose leases expired.\n"
      "# TYPE gradq_worker_leases_expired_total counter\n"
      "gradq_worker_leases_expired_total ",
      lost == events_.end() ? 0 : lost->second, "\n");
  return text;
}

}  // namespace gradq
