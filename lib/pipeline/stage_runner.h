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

// Weights of a stage on its device; kept between the forward and the backward task of a stage.
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

struct StageTask {
  bool backward = false;
  // Add up the loss (last stage only).
  bool loss = false;
  std::vector<std::string> accumulate;  // statistics by catalog name
  std::vector<std::string> linears;     // accumulate for these; empty: all of the stage
  int groups = 1;
  int64_t sequences = 0;
  int64_t length = 0;
  int64_t chunk_sequences = 0;
};

// What a task reads and where its results go.
struct StageEnds {
  // Output of the stage before, chunks {"x" [sequences, length, hidden]}; nullptr for the first
  // stage.
  ChunkReader* activations = nullptr;
  // Gradient of the stage behind, chunks {"dz" of the same shape}; nullptr for the last stage.
  ChunkReader* gradients = nullptr;
  // All windows, [sequences, length]; the first and the last stage use them.
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
  // Σ over all predicted tokens of all windows, nats; set with `loss`.
  double loss_sum = 0;
  int64_t loss_tokens = 0;
  // Inside numeric work, not waiting for input.
  double compute_seconds = 0;
};

// CANCELLED; INVALID_ARGUMENT (unknown statistic or linear, loss not finite); RESOURCE_EXHAUSTED;
// DATA_LOSS (an input chunk of the wrong shape); errors of the readers and writers, unchanged.
// Output streams are completed on success and abandoned otherwise.
absl::StatusOr<StageResult> RunStage(LoadedStage& stage, const StageTask& task,
                                     const StageEnds& ends, ThreadPool* pool);

// OK when tensors can live on `device` in this build on this machine. INVALID_ARGUMENT: not a
// device name; FAILED_PRECONDITION: no CUDA here, or fewer devices.
absl::Status CheckDevice(const std::string& device);

}  // namespace gradq
