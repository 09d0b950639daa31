#pragma once

// Runs one RunStage task (design 2): chunk by chunk through the blocks of a stage, forward or
// backward, with statistics and loss. The same code in a worker and in a local run; shows no ATen,
// so that services/ may include it beside .pb.h files. Compute thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/pipeline/chunk.h"
#include "lib/pipeline/weight_source.h"

namespace gradq {

class ThreadPool;

// A contiguous range of blocks.
struct StageRange {
  int first_block = 0;
  int end_block = 0;
  bool operator==(const StageRange&) const = default;
};

// How a stage runs.
struct StageSetup {
  std::string device = "cpu";             // or "cuda:0"
  std::string compute_dtype = "float32";  // or "bfloat16"
  // Forward each block again in the backward pass instead of keeping its graph: same bits, less
  // memory.
  bool recompute = false;
  bool operator==(const StageSetup&) const = default;
};

// Weights of a stage on its device; may serve several tasks.
class LoadedStage {
 public:
  // Errors of reading weights (naming the tensor), INVALID_ARGUMENT (device, dtype),
  // RESOURCE_EXHAUSTED (memory).
  static absl::StatusOr<std::unique_ptr<LoadedStage>> Load(const WeightSource& weights,
                                                           const StageRange& range,
                                                           const StageSetup& setup);
  ~LoadedStage();

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  explicit LoadedStage(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A pass walks over the slice once per node of the round's path (lib/catalog/program.h), each time
// with that node's weights: all chunks of node 0, then all of node 1, and so do the streams. A
// backward task of the last stage computes only the loss of nodes with coefficient 0; those of
// other stages leave such nodes out.
struct StageTask {
  bool backward = false;
  // Add up the loss (last stage only).
  bool loss = false;
  std::vector<std::string> accumulate;  // statistics by catalog name
  std::vector<std::string> linears;     // accumulate for these; empty: all of the stage
  int groups = 1;
  // Of each node's gradients in the sums; those that are 0 come last.
  std::vector<double> coefficients = {1};
  // weight_gradient: of the first so many sequences (0: all); absolute values per sequence.
  int64_t gradient_sequences = 0;
  bool gradient_absolute = false;
  // Slice of the calibration set.
  int64_t first_sequence = 0;
  int64_t sequences = 0;
  int64_t length = 0;
  int64_t chunk_sequences = 0;
};

// Chunks that a task goes through. `last`: it is one of the last stage.
int64_t ChunksOf(const StageTask& task, bool last);

// What a task reads and where its results go.
struct StageEnds {
  // Output of the stage before, chunks {"x" [sequences, length, hidden]}; nullptr for the first
  // stage. Chunks of nodes that the task leaves out stay unread.
  ChunkReader* activations = nullptr;
  // Gradient of the stage behind, chunks {"dz" of the same shape}; nullptr for the last stage.
  ChunkReader* gradients = nullptr;
  // All windows of the calibration set, [.., length]; the first and the last stage use them.
  std::span<const int32_t> tokens;
  // Opens an output stream: lane "out" (activations or gradients for the neighbour) and one
  // "stat/{linear}" per observed linear, all at the start of the task, so that readers can wait.
  std::function<absl::StatusOr<std::unique_ptr<ChunkWriter>>(const std::string& lane)> open;
  // After each chunk; may be empty.
  std::function<void(int chunks_done, const std::string& digest)> progress;
  // Asked at chunk boundaries and while waiting for input; may be empty.
  std::function<bool()> cancelled;
};

struct StageResult {
  // Per node, Σ over all predicted tokens of the slice, nats; set with `loss`.
  std::vector<double> node_loss_sum;
  int64_t loss_tokens = 0;  // of one node
  // Inside numeric work, not waiting for input.
  double compute_seconds = 0;
};

// CANCELLED; INVALID_ARGUMENT (unknown statistic or linear, loss not finite); RESOURCE_EXHAUSTED;
// DATA_LOSS (an input chunk of the wrong shape); errors of the readers and writers, unchanged.
// Output streams are completed on success and abandoned otherwise.
absl::StatusOr<StageResult> RunStage(LoadedStage& stage, const StageTask& task,
                                     const StageEnds& ends, ThreadPool* pool);

// The stage with the weights of a node; the answer for the node before is not used any more.
using StageOfNode = std::function<absl::StatusOr<LoadedStage*>(int node)>;
// As above, asking for each node's weights when its walk begins; errors of `stages`, unchanged.
absl::StatusOr<StageResult> RunStage(const StageOfNode& stages, const StageTask& task,
                                     const StageEnds& ends, ThreadPool* pool);

// OK when tensors can live on `device` in this build on this machine. INVALID_ARGUMENT: not a
// device name; FAILED_PRECONDITION: no CUDA here, or fewer devices.
absl::Status CheckDevice(const std::string& device);

}  // namespace gradq
