#pragma once

// Runs one SolveLinear or ScoreLinear task: weights, statistics stream and recipe in, the bytes of
// a shard per variant or a summary of scores out. The same code in a worker and in a local run;
// shows no ATen, so that services/ may include it beside .pb.h files. Compute thread.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/recipe.h"
#include "lib/format/quantized_linear.h"
#include "lib/pipeline/chunk.h"
#include "lib/pipeline/weight_source.h"
#include "lib/solvers/score_summary.h"

namespace gradq {

class ThreadPool;

// What a job says of the solve.
struct SolveRecipe {
  Recipe recipe;  // resolved
  // What the statistics were summed over: N sequences of T tokens.
  int64_t sequences = 64;
  int64_t length = 512;
};

// What was decided for the linear before (v1.LinearDecision).
struct SolveDecision {
  std::optional<double> threshold{};  // weights with a score not below it are kept apart
  std::optional<double> outlier_fraction{};
  std::optional<int> variant{};  // of VariantsOf(recipe); unset: all of them
};

struct SolvedLinear {
  std::string shard;   // safetensors bytes (lib/format/quantized_linear.h)
  std::string sha256;  // hex, of the shard
  QuantizedLinear linear;
  double shrinkage = 1;        // of the coupled objective; 1: uncoupled
  double compute_seconds = 0;  // of all variants together, in the first
};

// Price of the guided objective in nats per token: ½ · (T/N) · c⁻², c = 1e3 (design 1).
double LossPrice(int64_t sequences, int64_t length);

// Solves the linear called `linear` (checkpoint name without ".weight"), a result per variant in
// their order. `statistics` yields one chunk per statistic tensor; nullptr when neither method nor
// outlier policy needs any. The loss increase is predicted wherever Fisher blocks came. NOT_FOUND:
// no such linear; INVALID_ARGUMENT: a statistic is missing or of another size, weights are not
// finite, no such variant; CANCELLED; RESOURCE_EXHAUSTED: out of memory; errors of the reader,
// unchanged. `cancelled` is asked at every column block; may be empty.
absl::StatusOr<std::vector<SolvedLinear>> SolveLinear(const WeightSource& weights,
                                                      const SolveRecipe& recipe,
                                                      const SolveDecision& decision,
                                                      const std::string& linear,
                                                      ChunkReader* statistics, ThreadPool* pool,
                                                      std::function<bool()> cancelled);

struct ScoredLinear {
  ScoreSummary summary;
  double compute_seconds = 0;
};

// Scores the linear's weights: those of PQI on the way to `quantized`, or where it is nullptr those
// of the recipe's outlier policy. INVALID_ARGUMENT also when the policy ranks by no score.
absl::StatusOr<ScoredLinear> ScoreLinear(const WeightSource& weights, const SolveRecipe& recipe,
                                         const std::string& linear,
                                         const QuantizedLinear* quantized, ChunkReader* statistics,
                                         ThreadPool* pool, std::function<bool()> cancelled);

// `quantized` with the weights kept apart, too, whose PQI score is not below the decided threshold
// (none when it is not set).
absl::StatusOr<SolvedLinear> DetachLinear(const WeightSource& weights, const SolveRecipe& recipe,
                                          const SolveDecision& decision,
                                          const QuantizedLinear& quantized,
                                          ChunkReader* statistics);

}  // namespace gradq
