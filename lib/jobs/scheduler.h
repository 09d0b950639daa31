#pragma once

// Which task for which worker: pure functions over a job and the fleet. Order: scores and solves,
// backward, forward; among scores and solves those whose statistics the worker holds itself,
// earlier rounds, dearest first; oldest job first is the caller's loop.

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "lib/jobs/fleet.h"
#include "lib/jobs/job_state.h"

namespace gradq {

// Bytes of statistics that somebody still reads, whole stages at the plan's price of the largest:
// those that can be scored or solved now, and those that wait for another round or a decision.
struct HeldStatistics {
  int64_t workable = 0;
  int64_t waiting = 0;
};
using HeldBySession = std::map<std::string, HeldStatistics, std::less<>>;
// Adds what sessions hold of the job.
void AddHeldStatistics(const JobState& job, HeldBySession* held);

// The task of a RUNNING job that this compute worker should get now, nullopt when there is none.
// `held`: of all jobs.
std::optional<int> ChooseComputeTask(const JobState& job, const WorkerState& worker,
                                     const Fleet& fleet, const HeldBySession& held);

// The Validate task of a VALIDATING job when this inference worker may have it.
std::optional<int> ChooseValidate(const JobState& job, const WorkerState& worker,
                                  const Fleet& fleet);

}  // namespace gradq
