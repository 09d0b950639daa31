#pragma once

// The one place where absl and gRPC statuses meet. Codes are equal by number; messages are cut at 2
// KiB.

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace gradq {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace gradq
