#pragma once

// A whole quantization in one process without a network: the same stage runner, streams and solver
// as in a cluster, one task after the other. For tests, benchmarks and goldens. Compute thread.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/program.h"
#include "lib/catalog/recipe.h"
#include "lib/format/checkpoint.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/linear_solver.h"
#include "lib/pipeline/stage_runner.h"

namespace gradq {

class ThreadPool;

// What a round of the job's program found.
struct LocalRound {
  Round round;
  // Mean cross-entropy per predicted token of each node, nats; empty without a pass.
  std::vector<double> node_loss{};
  std::map<std::string, ScoreSummary> scores{};               // by linear, in rounds that score
  std::map<std::string, std::vector<SolvedLinear>> solved{};  // by linear, a shard per variant
  // Σ of the signed scores over the linears: PQI's integral of the loss, nats per token.
  double integral() const;
};

using LinearDecisions = std::map<std::string, SolveDecision>;

struct LocalJob {
  std::shared_ptr<const Checkpoint> checkpoint;
  // Calibration windows, [sequences, length].
  std::vector<int32_t> tokens;
  Recipe recipe;  // given or resolved
  int64_t sequences = 64;
  int64_t length = 512;
  int64_t chunk_sequences = 4;
  int stages = 1;
  StageSetup setup;
  ChunkStoreOptions streams;
  // In place of the job's Decide tasks, which belong to the coordinator; asked in rounds with a
  // decision, after the solves for RoundDecision::kWidths and before them for others. Empty: such
  // recipes are UNIMPLEMENTED.
  std::function<absl::StatusOr<LinearDecisions>(const LocalRound& found)> decide;
  // False: stop after the first round's statistics.
  bool solve = true;
  // Keep the first round's statistics' digests (tests).
  bool digest_statistics = false;
};

struct LocalResult {
  // The shards of the result by linear.
  std::map<std::string, SolvedLinear> linears;
  // Every round in order; their shards moved on to `linears` where they are the result.
  std::vector<LocalRound> rounds;
  // SHA-256 (bytes) of each statistic tensor by "{linear}/{statistic}", with digest_statistics.
  std::map<std::string, std::string> statistics;
  // Mean cross-entropy per predicted token, nats; 0 when the recipe needs no pass.
  double loss = 0;
  // Σ over the linears, nats per token; 0 when no gradients were taken.
  double predicted_loss_increase = 0;
  // Wall seconds by phase: "forward", "backward", "score", "solve".
  std::map<std::string, double> seconds;
  int64_t spooled_bytes = 0;  // largest at any time
};

// Errors of MakeProgram, MakePlan, RunStage and SolveLinear.
absl::StatusOr<LocalResult> RunLocally(const LocalJob& job, ThreadPool* pool);

}  // namespace gradq
