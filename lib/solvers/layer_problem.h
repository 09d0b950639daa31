#pragma once

// Everything a quantizer knows of one linear. Statistics arrive as tensors by name (lib/statistics
// makes them, streams carry them).

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/groups.h"
#include "lib/catalog/options.h"
#include "lib/catalog/quantizers.h"
#include "lib/format/quantized_linear.h"

namespace gradq {

class ThreadPool;

// What a Decide task found out for this linear (job.proto, LinearDecision); empty where the outlier
// policy decides by itself.
struct OutlierDecision {
  std::optional<double> threshold;  // weights with a score not below it are kept apart
  std::optional<double> fraction;   // share of this linear's weights
};

struct LayerProblem {
  std::string name;
  at::Tensor weight;  // fp32 [out, in], contiguous, CPU
  GroupPartition groups;
  int bits = 0;
  Objective objective = Objective::kGuided;
  OptionMap options;  // resolved (lib/catalog/options.h)
  // Full symmetric fp32 [in, in], one per group; empty when the job took no gradients.
  std::vector<at::Tensor> fisher_blocks;
  at::Tensor gram;             // fp32 [in, in] or undefined
  at::Tensor fisher_diagonal;  // fp32 [out, in] or undefined
  at::Tensor weight_gradient;  // fp32 [out, in] or undefined
  at::Tensor output_fisher;    // full symmetric fp32 [out, out] or undefined
  // Shrinkage a of the coupled objective, O <- (1 - a) O + a diag(O); 1: uncoupled.
  double shrinkage = 1;
  // Weights kept apart in fp16, [out, in] row-major, 1: apart; empty: none. Their error is 0 for
  // the solver: LNQ leaves them out of sweeps and codebook equations, GPTQ lets later columns
  // compensate as for any column without error, k-means gives them weight 0. Their code is the
  // nearest to the weight; SolveLayer then stores the difference. SolveLayer sets it, unless
  // `outliers` is "none".
  std::vector<uint8_t> apart;
  // Row of the outlier-policy catalog, its options (SolveLayer fills in defaults), and what was
  // decided for it.
  std::string outliers = "none";
  OptionMap outlier_options;
  OutlierDecision decision;
  // ½ · (T / N) · c⁻²: nats per token and unit of Σ_k |J_k| objective_k (design 1).
  double loss_price = 0;
};

struct SolveContext {
  ThreadPool* pool = nullptr;
  // Asked at every column block and iteration; true: the solve returns CANCELLED.
  std::function<bool()> cancelled;
};

// Builds the statistics part of a problem from named tensors ("fisher_blocks/0", "gram", ...):
// packed triangles are unfolded. INVALID_ARGUMENT when one that `needs` lists is missing or has the
// wrong size.
absl::Status AttachStatistics(const std::map<std::string, at::Tensor>& tensors,
                              const std::vector<std::string_view>& needs, LayerProblem* problem);

}  // namespace gradq
