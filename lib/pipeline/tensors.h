#pragma once

// HostTensor <-> at::Tensor without copying on the CPU, and the one place where libtorch's
// exceptions become a Status. Called from the compute thread.

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/pipeline/chunk.h"

namespace gradq {

// fp32, fp64 or int32. On the CPU a contiguous tensor is shared: it must not be written to
// afterwards; others are copied.
HostTensor ToHost(std::string name, const at::Tensor& tensor);

// A CPU tensor over the same bytes, which it keeps alive; must not be written to. INVALID_ARGUMENT:
// dtype and shape do not fit the bytes.
absl::StatusOr<at::Tensor> ToTensor(const HostTensor& tensor);

// The tensor called `name` of a chunk. DATA_LOSS when there is none.
absl::StatusOr<at::Tensor> FindTensor(const Chunk& chunk, std::string_view name);

// Runs `body`; what libtorch or the allocator throws becomes RESOURCE_EXHAUSTED (out of memory) or
// INTERNAL, without backtrace and cut at 2 KiB. `what` names the work in the message.
absl::Status CatchTorch(std::string_view what, absl::FunctionRef<absl::Status()> body);

}  // namespace gradq
