#pragma once

// What the sources of Session share.

#include "absl/status/status.h"

namespace gradq {

// DEADLINE_EXCEEDED as UNAVAILABLE: for RetryUnavailable around calls whose deadline may pass.
absl::Status AsUnavailable(absl::Status status);

}  // namespace gradq
