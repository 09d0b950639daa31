#pragma once

// A whole quantization in one process without a network: the same stage runner, streams and solver
// as in a cluster, one task after the other. For tests, benchmarks and goldens. Compute thread.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/format/checkpoint.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/linear_solver.h"
#include "lib/pipeline/stage_runner.h"

namespace gradq {

class ThreadPool;

struct LocalJob {
  std::shared_ptr<const Checkpoint> checkpoint;
  // Calibration windows, [recipe.sequences, recipe.length].
  std::vector<int32_t> tokens;
  SolveRecipe recipe;
  int64_t chunk_sequences = 4;
  int stages = 1;
  StageSetup setup;
  ChunkStoreOptions streams;
  // False: stop after the statistics.
  bool solve = true;
  // Keep the statistics' digests (tests).
  bool digest_statistics = false;
};

struct LocalResult {
  // Shards by linear.
  std::map<std::string, SolvedLinear> linears;
  // SHA-256 (bytes) of each statistic tensor by "{linear}/{statistic}", with digest_statistics.
  std::map<std::string, std::string> statistics;
  // Mean cross-entropy per predicted token, nats; 0 when the recipe needs no pass.
  double loss = 0;
  // Σ over the linears, nats per token; 0 when no gradients were taken.
  double predicted_loss_increase = 0;
  // Wall seconds by phase: "forward", "backward", "solve".
  std::map<std::string, double> seconds;
  int64_t spooled_bytes = 0;  // largest at any time
};

// Errors of MakePlan, RunStage and SolveLinear.
absl::StatusOr<LocalResult> RunLocally(const LocalJob& job, ThreadPool* pool);

}  // namespace gradq
