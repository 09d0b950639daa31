#pragma once

// Runs one SolveLinear task: weights, statistics stream and recipe in, the bytes of a shard out.
// The same code in a worker and in a local run. Compute thread.

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "lib/catalog/options.h"
#include "lib/catalog/quantizers.h"
#include "lib/format/quantized_linear.h"
#include "lib/pipeline/chunk.h"
#include "lib/pipeline/weight_source.h"

namespace gradq {

class ThreadPool;

// What a job says of the solve.
struct SolveRecipe {
  std::string method = "lnq";
  int bits = 3;
  Objective objective = Objective::kGuided;
  int groups = 4;
  OptionMap options;  // given ones; defaults are filled in from the catalog
  // Calibration set: N sequences of T tokens.
  int64_t sequences = 64;
  int64_t length = 512;
};

struct SolvedLinear {
  std::string shard;   // safetensors bytes (lib/format/quantized_linear.h)
  std::string sha256;  // hex, of the shard
  QuantizedLinear linear;
  double compute_seconds = 0;
};

// Price of the guided objective in nats per token: ½ · (T/N) · c⁻², c = 1e3 (design 1).
double LossPrice(int64_t sequences, int64_t length);

// Solves the linear called `linear` (checkpoint name without ".weight"). `statistics` yields one
// chunk per statistic tensor; nullptr when the method needs none. NOT_FOUND: no such linear;
// INVALID_ARGUMENT: a statistic is missing or of another size, weights are not finite; CANCELLED;
// RESOURCE_EXHAUSTED: out of memory; errors of the reader, unchanged.
// `cancelled` is asked at every column block; may be empty.
absl::StatusOr<SolvedLinear> SolveLinear(const WeightSource& weights, const SolveRecipe& recipe,
                                         const std::string& linear, ChunkReader* statistics,
                                         ThreadPool* pool, std::function<bool()> cancelled);

}  // namespace gradq
