#pragma once

// How a job is cut and what it will need, from geometry and recipe alone. Used by CreateJob,
// PlanJob and the scheduler. Deterministic, no state: the same inputs give the same plan on every
// machine.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/geometry.h"
#include "lib/catalog/inference_memory.h"
#include "lib/catalog/program.h"
#include "lib/catalog/recipe.h"

namespace gradq {

struct PlanInputs {
  ModelGeometry geometry;
  Recipe recipe;  // given or resolved
  int64_t sequences = 64;
  int64_t length = 512;
  int64_t chunk_sequences = 4;
  int stages = 0;                         // 0: chosen
  int workers = 1;                        // ready workers
  int64_t worker_memory_bytes = 0;        // smallest of them; 0: unknown
  int64_t compute_bytes = 4;              // bytes per element of compute_dtype
  int64_t source_bytes = 2;               // bytes per element of the checkpoint
  int64_t small_files_bytes = 8'000'000;  // tokenizer and configuration files, which are copied
  // Statistics are summed as whole squares, not packed triangles: true on devices other than the
  // CPU.
  bool whole_squares = false;
};

struct Plan {
  std::vector<int> first_block;  // per stage
  int chunks = 0;                // of the whole calibration set
  std::vector<Round> rounds;
  // Of round 0.
  std::vector<std::string> statistics;
  bool needs_backward = false;
  // A worker must run each block's forward again in the backward pass: a chunk's graph of a whole
  // stage does not fit.
  bool recompute = false;
  // Largest over the stages, bytes.
  int64_t weights_bytes = 0;
  int64_t activations_bytes = 0;  // graph of one chunk
  int64_t statistics_bytes = 0;
  // Streams of the whole job in its largest round: activations, gradients, statistics of a stage,
  // and those of all stages that a later round's solve reads.
  int64_t spool_bytes = 0;
  int64_t shard_bytes = 0;  // of all rounds and variants, at the coordinator
  int64_t artifact_bytes = 0;
  int64_t worker_memory_bytes = 0;  // what one worker needs at once, largest over stages and phases
  // Floating-point operations of the whole job.
  double pass_flop = 0;
  double statistics_flop = 0;
  double solve_flop = 0;
  // Of running the artifact.
  InferenceMemory inference_cpu;
  InferenceMemory inference_cuda;
};

// INVALID_ARGUMENT: what ResolveRecipe and MakeProgram refuse; average bits out of reach; groups,
// stages or sizes that cannot be (each with the value and the range). RESOURCE_EXHAUSTED: no number
// of stages, or not the one asked for, fits worker_memory_bytes (with needed and available bytes).
absl::StatusOr<Plan> MakePlan(const PlanInputs& inputs);

// Stored bits per quantized weight of a model whose linears are all solved at `bits`: codes with
// padding, tables, scales, zero points, and outliers at the recipe's fraction of each linear.
// `recipe` is resolved. Equal to QuantizedLinear::average_bits over the model where each linear
// keeps just its share apart.
double AverageBits(const ModelGeometry& geometry, const Recipe& recipe, int bits);

}  // namespace gradq
