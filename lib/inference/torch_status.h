#pragma once

// The one place of lib/inference where libtorch's exceptions become a Status.

#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace gradq {

// Runs `body`; what libtorch or the allocator throws becomes RESOURCE_EXHAUSTED (out of memory) or
// INTERNAL, without backtrace. `what` names the work in the message.
absl::Status TorchStatus(std::string_view what, absl::FunctionRef<absl::Status()> body);

// Throws unless `status` is OK; TorchStatus gives back the status. For errors of our own kernels
// below functions that return tensors.
void ThrowIfError(const absl::Status& status);

}  // namespace gradq
