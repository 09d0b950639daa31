#pragma once

// What running a model takes, from geometry and recipe alone: printed by `gradq plan`, and in parts
// used by lib/inference for models that exist. Deterministic, no state. Doubles: absurd geometries
// must give large numbers, not overflow.

#include <cstdint>

#include "lib/catalog/geometry.h"
#include "lib/catalog/recipe.h"

namespace gradq {

// Bytes.
struct InferenceMemory {
  double linears = 0;          // packed, in the layout of the device's kernels
  double kept = 0;             // embedding, head, norms, biases
  double cache_per_token = 0;  // keys and values of one sequence
  double cache_window = 0;     // of one sequence as long as the model's positions
  double scratch = 0;          // of the largest pass of scoring or of a prompt
  double weights() const { return linears + kept; }
};

enum class InferenceTarget { kCpu, kCuda };  // in fp32; in fp16 or bf16 with tile kernels

// Of the artifact that a job with this resolved recipe makes. With a budget of average bits the
// widths are not known yet: interpolated between those of two widths.
InferenceMemory PredictInference(const ModelGeometry& geometry, const Recipe& recipe,
                                 InferenceTarget target);

// Keys and values of a token in all blocks.
double CacheBytesPerToken(const ModelGeometry& geometry, double element_bytes);

// Tokens that scoring runs at a time, at least one window.
inline constexpr int64_t kScoringTokens = 2048;
// Of log-probabilities that scoring holds at a time.
inline constexpr int64_t kScoringRowBytes = int64_t{32} << 20;
// Weights that are decoded at a time for a product with many tokens: on the CPU small enough for a
// cache, on a device large enough to be worth a product.
inline constexpr int64_t kHostPanelWeights = int64_t{1} << 19;
inline constexpr int64_t kTilePanelWeights = int64_t{1} << 24;

// What lives beside weights and caches in a pass over kScoringTokens tokens: activations of a
// block, rows of logits, a panel of decoded weights (`panel_weights` 0: none). An estimate:
// allocators and libraries come on top.
double ScratchBytes(const ModelGeometry& geometry, double element_bytes, int64_t panel_weights);

}  // namespace gradq
