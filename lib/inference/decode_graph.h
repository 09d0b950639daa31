#pragma once

// Device work that was recorded once and is replayed as a whole: a launch instead of some hundred.
// Builds without CUDA have the same functions (decode_graph_none.cc). Compute thread; libtorch
// exceptions pass through.

#include <c10/core/Device.h>

#include <memory>

#include "absl/functional/function_ref.h"

namespace gradq {

class DecodeGraph {
 public:
  virtual ~DecodeGraph() = default;
  // Records what `enqueue` puts on the current stream of `device`, which is not the default one;
  // nothing of it runs yet. It has run before, outside of a recording, so that libraries have
  // allocated what they keep. Memory that it reads and writes must stay where it is; what it
  // allocates belongs to the graph. Null on devices that record nothing: `enqueue` was not called.
  static std::unique_ptr<DecodeGraph> Record(c10::Device device, absl::FunctionRef<void()> enqueue);
  // Enqueues the recorded work on the current stream.
  virtual void Replay() = 0;
};

}  // namespace gradq
