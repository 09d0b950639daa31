#pragma once

// Model over lib/transformer: what is the same for dense and packed linears. Made by Model::Load.

#include <ATen/core/Tensor.h>

#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "lib/inference/decode_step.h"
#include "lib/inference/model.h"
#include "lib/transformer/block.h"

namespace gradq {

class TransformerModel : public Model {
 public:
  // Everything a model is made of; `linears` refers to `blocks`, so that both stay where they are.
  struct Parts {
    ModelGeometry geometry;
    at::Device device = at::kCPU;
    at::Tensor embedding;
    HeadWeights head;
    std::unique_ptr<std::vector<BlockWeights>> blocks;
    std::unique_ptr<LinearOp> linears;
    bool quantized = false;
    int64_t linear_bytes = 0;   // of packed linears; dense ones are counted in `blocks`
    int64_t panel_weights = 0;  // decoded at a time
    // Single tokens are decoded by a DecodeStep; the geometry is one that it serves.
    bool by_step = false;
    int multiprocessors = 1;  // of the device
  };
  explicit TransformerModel(Parts parts);

  const ModelGeometry& geometry() const override { return parts_.geometry; }
  ModelMemory memory() const override { return memory_; }
  bool quantized() const override { return parts_.quantized; }
  absl::Status RunWindows(std::span<const int32_t> tokens, int64_t sequences) override;
  absl::StatusOr<std::span<const float>> LogProbabilities(int64_t begin, int64_t rows) override;
  std::unique_ptr<Sequence> NewSequence() override;
  absl::StatusOr<std::vector<float>> Decode(Sequence& sequence,
                                            std::span<const int32_t> tokens) override;

 private:
  // The residual stream after the last block; tokens [sequences × length].
  at::Tensor Run(std::span<const int32_t> tokens, int64_t sequences, Attention& attention);
  // Logits [vocab] after a prompt, in pieces.
  at::Tensor RunPrompt(std::span<const int32_t> tokens, CachedAttention& attention);
  // Runs `body` on the device's stream without gradients. RESOURCE_EXHAUSTED gives libtorch's
  // cached memory back, so that the next call finds it.
  absl::Status Compute(std::string_view what, absl::FunctionRef<absl::Status()> body) const;
  absl::Status CheckTokens(std::span<const int32_t> tokens, int64_t end_position) const;
  const RotaryTable& Rotary(int64_t positions);

  Parts parts_;
  ModelMemory memory_;
  CausalAttention windows_;
  RotaryTable rotary_;
  at::Tensor states_;             // [rows, hidden] of the last RunWindows
  at::Tensor log_probabilities_;  // of the last LogProbabilities, on the host
  std::unique_ptr<DecodeStep> step_;
};

}  // namespace gradq
