#pragma once

// How a process that started a server on port 0 learns its address: the server writes "HOST:PORT\n"
// to a file, atomically, once it listens.

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradq {

// Nothing when `path` is empty.
absl::Status WritePortFile(const std::string& path, const std::string& address);

// Waits until the file stands and returns the address in it. DEADLINE_EXCEEDED after `timeout`;
// CANCELLED as soon as `gone` returns true (the server ended).
absl::StatusOr<std::string> WaitForPortFile(const std::string& path, absl::Duration timeout,
                                            absl::FunctionRef<bool()> gone);

}  // namespace gradq
