#pragma once

// Perplexity of a model and its distance from a reference on fixed windows of tokens (design 6):
// every token of a window but the first is predicted from those before it. Sums are fp64 in token
// order. Compute thread.

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/statusor.h"
#include "lib/catalog/inference_memory.h"
#include "lib/inference/model.h"

namespace gradq {

struct Score {
  double perplexity = 0;
  int64_t tokens = 0;  // predicted tokens
  double seconds = 0;
};

struct ComparisonResult {
  double perplexity = 0;
  double reference_perplexity = 0;
  double kl = 0;              // mean KL(reference || model) per predicted token, nats
  double top1_agreement = 0;  // share of predicted tokens with the same arg max
  int64_t tokens = 0;
  double seconds = 0;
};

// What bounds memory; results do not depend on it.
struct ScoringLimits {
  int64_t batch_tokens = kScoringTokens;  // of a forward pass, at least one window
  int64_t row_bytes = kScoringRowBytes;   // of log-probabilities at a time, at least one row
};

// `windows` [sequences × length] token ids, length ≥ 2. `cancelled` is asked between batches (may
// be empty): CANCELLED. Errors as Model::RunWindows.
absl::StatusOr<Score> ScoreWindows(Model& model, std::span<const int32_t> windows, int64_t length,
                                   const std::function<bool()>& cancelled,
                                   const ScoringLimits& limits = {});

// INVALID_ARGUMENT when the two vocabularies differ. `pool` may be null; `model` and `reference`
// may be the same.
absl::StatusOr<ComparisonResult> CompareWindows(Model& model, Model& reference,
                                                std::span<const int32_t> windows, int64_t length,
                                                ThreadPool* pool,
                                                const std::function<bool()>& cancelled,
                                                const ScoringLimits& limits = {});

}  // namespace gradq
