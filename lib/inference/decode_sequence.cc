#include "lib/inference/decode_sequence.h"

namespace gradq {

void DecodeSequence::Decode(int32_t token, const RotaryTable& rotary, DecodeStep* step) {
  step->SetInput(token, attention_.position());
  if (ran_capacity_ != attention_.capacity()) {
    // The caches have moved, and libraries may want other memory for other sizes.
    graph_.reset();
    rotary_ = rotary;
    step->Run(attention_, rotary_);
    ran_capacity_ = attention_.capacity();
  } else {
    if (graph_ == nullptr) {
      graph_ = DecodeGraph::Record(step->device(), [&] { step->Run(attention_, rotary_); });
    }
    if (graph_ != nullptr) {
      graph_->Replay();
    } else {
      step->Run(attention_, rotary_);
    }
  }
  attention_.Advance(1);
}

}  // namespace gradq
