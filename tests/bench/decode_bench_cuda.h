#pragma once

// Times one-token decoding by lib/inference with random weights, packed and dense in turns. Runs on
// the CPU, too, where its test watches that it measures what it says.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/geometry.h"
#include "tests/bench/decode_flags_cuda.h"
#include "tests/bench/decode_rows_cuda.h"

namespace gradq {

struct DecodePlace {
  at::Device device = at::kCPU;
  at::ScalarType type = at::kHalf;
  int multiprocessors = 1;     // of the device
  ThreadPool* pool = nullptr;  // repacks; may be null
};

// Rows in the order dense, then flags.bits. Errors as TorchStatus: RESOURCE_EXHAUSTED when memory
// does not suffice.
absl::StatusOr<std::vector<DecodeRow>> RunDecodeBench(const DecodeFlags& flags,
                                                      const ModelGeometry& geometry,
                                                      const DecodePlace& place);

}  // namespace gradq
