#include "services/coordinator/job_names.h"

#include <algorithm>

#include "lib/base/strings.h"

namespace gradq {

absl::StatusOr<std::string> JobId(std::string_view job) {
  constexpr std::string_view kPrefix = "jobs/";
  const std::string_view id =
      job.starts_with(kPrefix) ? job.substr(kPrefix.size()) : std::string_view();
  const bool plain = std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_';
  });
  if (id.empty() || !plain) {
    return absl::InvalidArgumentError(StrCat("name is not jobs/{id}: '", job, "'"));
  }
  return std::string(id);
}

std::string_view JobOfTask(std::string_view task) { return task.substr(0, task.find("/tasks/")); }

}  // namespace gradq
