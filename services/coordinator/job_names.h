#pragma once

// What the coordinator's service reads from names of jobs and tasks. Pure functions.

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace gradq {

// The id of "jobs/{id}"; it becomes part of a path, so nothing but letters, digits, '-' and '_'
// passes. INVALID_ARGUMENT.
absl::StatusOr<std::string> JobId(std::string_view job);

// "jobs/1" of "jobs/1/tasks/x".
std::string_view JobOfTask(std::string_view task);

}  // namespace gradq
