#pragma once

// The yardstick of the end-to-end benchmark: one plain fp32 training pass over the calibration
// tokens (ATen forward, autograd backward with weight gradients), batch by batch.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

// Wall seconds of the pass over tokens [sequences, length] of the checkpoint at `folder`, in
// batches of `batch` sequences; weights are loaded before the clock starts.
absl::StatusOr<double> PlainPassSeconds(const std::string& folder,
                                        const std::vector<int32_t>& tokens, int64_t length,
                                        int64_t batch);

}  // namespace gradq
