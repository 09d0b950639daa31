#include "lib/jobs/job_state.h"

#include "lib/base/strings.h"

namespace gradq {

bool IsTerminal(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

bool Assembles(const JobState& job) {
  return job.assemble >= 0 && job.tasks[job.assemble].running();
}

std::string_view LastPart(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? name : name.substr(slash + 1);
}

v1::StreamName StreamNameOf(const JobState& job, const TaskState& task, int64_t attempt,
                            std::string_view lane) {
  v1::StreamName stream;
  stream.set_job(job.name());
  stream.set_round(task.task().spec().run_stage().round());
  stream.set_task(std::string(LastPart(task.task().name())));
  stream.set_attempt(attempt);
  stream.set_lane(std::string(lane));
  return stream;
}

std::string StatisticLane(const LinearState& linear) { return StrCat("stat/", linear.name); }

}  // namespace gradq
