#pragma once

// The probe of machine_probe.cuh on the current CUDA device.

#include <cstdint>

#include "absl/status/status.h"

namespace gradq::kernels {

// Device memory: `words` [kProbeWords], `out` [kProbeResults]. Enqueued on the default stream.
// INTERNAL when the launch fails, FAILED_PRECONDITION in a build without CUDA.
absl::Status ProbeDevice(const uint32_t* words, uint32_t* out);

}  // namespace gradq::kernels
