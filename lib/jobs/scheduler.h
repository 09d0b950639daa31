#pragma once

// Which task for which worker: pure functions over a job and the fleet. Order: SolveLinear,
// backward, forward; among solves those whose statistics the worker holds itself, dearest first;
// oldest job first is the caller's loop.

#include <cstdint>
#include <map>
#include <optional>

#include "lib/jobs/fleet.h"
#include "lib/jobs/job_state.h"

namespace gradq {

// Bytes of statistics that the session holds unsolved, over the given job: whole stages at the
// plan's price of the largest.
int64_t UnsolvedStatisticsBytes(const JobState& job, std::string_view session);

// The task of a RUNNING job that this compute worker should get now, nullopt when there is none.
// `unsolved_bytes`: UnsolvedStatisticsBytes summed over all jobs.
std::optional<int> ChooseComputeTask(const JobState& job, const WorkerState& worker,
                                     const Fleet& fleet, int64_t unsolved_bytes);

// The Validate task of a VALIDATING job when this inference worker may have it.
std::optional<int> ChooseValidate(const JobState& job, const WorkerState& worker,
                                  const Fleet& fleet);

}  // namespace gradq
