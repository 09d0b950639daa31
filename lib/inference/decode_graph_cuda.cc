#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

#include "lib/inference/decode_graph.h"

namespace gradq {
namespace {

class CudaDecodeGraph : public DecodeGraph {
 public:
  explicit CudaDecodeGraph(absl::FunctionRef<void()> enqueue) {
    // Other threads touch no device memory, but they may belong to libraries: only calls of this
    // thread that cannot be recorded are errors.
    graph_.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      enqueue();
    } catch (...) {
      // The stream must leave the recording, whatever became of it; the first error counts.
      try {
        graph_.capture_end();
      } catch (...) {
      }
      throw;
    }
    graph_.capture_end();
  }

  void Replay() override { graph_.replay(); }

 private:
  at::cuda::CUDAGraph graph_;
};

}  // namespace

std::unique_ptr<DecodeGraph> DecodeGraph::Record(c10::Device device,
                                                 absl::FunctionRef<void()> enqueue) {
  if (!device.is_cuda()) return nullptr;
  c10::cuda::getCurrentCUDAStream(device.index()).synchronize();
  return std::make_unique<CudaDecodeGraph>(enqueue);
}

}  // namespace gradq
