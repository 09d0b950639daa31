#pragma once

// A sequence that is being decoded: its cache and, on CUDA, the recorded step that reads it.
// Compute thread; exceptions as TorchStatus takes them.

#include <cstdint>
#include <memory>

#include "lib/inference/cached_attention.h"
#include "lib/inference/decode_graph.h"
#include "lib/inference/decode_step.h"
#include "lib/inference/model.h"

namespace gradq {

class DecodeSequence : public Sequence {
 public:
  DecodeSequence(const ModelGeometry& geometry, at::ScalarType type, at::Device device)
      : attention_(geometry, type, device) {}

  int64_t tokens() const override { return attention_.position(); }
  CachedAttention& attention() { return attention_; }

  // The next token by `step`, the same for all calls: logits are then in step->logits(). The first
  // token of a capacity runs as it is, the second is recorded, the others replay it. `rotary`
  // reaches to capacity; attention() has room.
  void Decode(int32_t token, const RotaryTable& rotary, DecodeStep* step);

 private:
  CachedAttention attention_;
  RotaryTable rotary_;        // that the recorded step reads
  int64_t ran_capacity_ = 0;  // at which the step has run, or is recorded
  std::unique_ptr<DecodeGraph> graph_;
};

}  // namespace gradq
