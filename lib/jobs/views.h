#pragma once

// What clients see of the core's state: names, page tokens, progress, the context of a lease. Pure
// functions.

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/worker_service.pb.h"
#include "lib/jobs/job_state.h"

namespace gradq {

// "jobs/12" -> 12. INVALID_ARGUMENT for anything else.
absl::StatusOr<int64_t> ParseJobName(std::string_view name);
// "jobs/12/tasks/x" -> "jobs/12". INVALID_ARGUMENT for anything else.
absl::StatusOr<std::string> JobOfTask(std::string_view task);

// 0 -> 50, above 1000 -> 1000, negative INVALID_ARGUMENT.
absl::StatusOr<int> PageSize(int32_t requested);
// Opaque tokens that name the list they belong to and the last item given; a token of another list
// is INVALID_ARGUMENT.
std::string MakePageToken(std::string_view list, std::string_view last);
// The last item of the page before, empty for the first page.
absl::StatusOr<std::string> ParsePageToken(std::string_view list, const std::string& token);

// Recomputes counts and sums from the tasks; phase and idle seconds are left alone.
void UpdateProgress(JobState* job);
// How long a job waits for an inference worker; 600 s where the spec says 0.
absl::Duration ValidateTimeout(const v1::JobSpec& spec);
// Opaque, another one for each revision.
std::string EtagOf(const v1::Job& job);
// What a worker needs to know of the job besides its task.
v1::JobContext ContextOf(const JobState& job);
// Name of the phase a task belongs to ("forward", "backward", "score", "solve", "assemble",
// "validate").
std::string_view PhaseOf(const v1::TaskSpec& spec);

}  // namespace gradq
