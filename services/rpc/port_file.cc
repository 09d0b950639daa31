#include "services/rpc/port_file.h"

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/address.h"

namespace gradq {

absl::Status WritePortFile(const std::string& path, const std::string& address) {
  if (path.empty()) return absl::OkStatus();
  return WriteFileAtomically(path, StrCat(address, "\n"));
}

absl::StatusOr<std::string> WaitForPortFile(const std::string& path, absl::Duration timeout,
                                            absl::FunctionRef<bool()> gone) {
  const absl::Time end = absl::Now() + timeout;
  while (true) {
    if (PathExists(path)) {
      GRADQ_ASSIGN_OR_RETURN(std::string text, ReadFile(path, 4096));
      while (!text.empty() && text.back() == '\n') text.pop_back();
      GRADQ_RETURN_IF_ERROR(ParseHostPort(text).status());
      return text;
    }
    if (gone()) return absl::CancelledError(StrCat("server ended before it listened: ", path));
    if (absl::Now() >= end) {
      return absl::DeadlineExceededError(
          StrCat("server does not listen yet: ", path, ", ", absl::FormatDuration(timeout)));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
}

}  // namespace gradq
