#pragma once

// Post-quantization integral and the detaching of ReQuant (PQI, arXiv:2503.01901): how much each
// weight's way from w to ŵ adds to the loss, and single weights given back to a quantized linear.
// Plain values, no libtorch. Any thread.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "lib/format/quantized_linear.h"

namespace gradq {

// ΔF_i = (ŵ_i − w_i) · G_i / N, in nats per token: Σ_i ΔF_i is the integral of dF along the
// straight way, F the mean over the N sequences of a sequence's mean cross-entropy. `gradient_sum`
// weight_gradient of the round, Σ_k c_k Σ_sequences dL/dw at the nodes of a quadrature. All [out,
// in].
std::vector<float> PqiScores(std::span<const float> weights, std::span<const float> quantized,
                             std::span<const float> gradient_sum, int64_t sequences);

// 1 where the linear keeps a weight apart, [out, in]; empty when it keeps none.
std::vector<uint8_t> ApartMask(const QuantizedLinear& linear);

// Adds every weight with score ≥ threshold to linear->outliers, value = fp16(w − dense); those
// already there stay, codes and tables too. A weight whose way lowers the loss keeps its codeword:
// giving it back would raise the loss, at first order (the paper seems to rank by |ΔF|).
// record.numbers: "outliers", "detached" (of all steps), "detach_threshold". The objective and the
// predicted loss increase of the record are dropped: they were those of the linear before.
// INVALID_ARGUMENT naming the linear when sizes differ or fp16 can't hold a difference.
absl::Status DetachOutliers(std::span<const float> weights, std::span<const float> scores,
                            double threshold, QuantizedLinear* linear);

}  // namespace gradq
