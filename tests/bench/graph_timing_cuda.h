#pragma once

// Timing on a CUDA device by graphs, and what times are compared with: the rate at which a plain
// kernel reads memory, and what an empty node of a graph costs. Shows no CUDA header. One thread.

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

struct BenchDevice {
  std::string name;
  int multiprocessors = 0;
  int64_t l2_bytes = 0;
};

// Makes device `ordinal` the calling thread's. NOT_FOUND "no CUDA device: ..." when there is none
// at all; else as QueryCudaDevice.
absl::StatusOr<BenchDevice> OpenBenchDevice(int ordinal);

// What was enqueued on a stream while it was recorded, to be launched any number of times. Movable;
// must not outlive the stream.
class TimedGraph {
 public:
  // `body` enqueues on `stream` (a cudaStream_t, not the default one), which then runs nothing.
  static absl::StatusOr<TimedGraph> Record(void* stream, absl::FunctionRef<absl::Status()> body);
  TimedGraph(TimedGraph&& other) noexcept;
  TimedGraph& operator=(TimedGraph&& other) = delete;
  ~TimedGraph();

  // Launches it and waits; seconds on the device from its first node to its last. INTERNAL when
  // something in it failed.
  absl::StatusOr<double> Run();

 private:
  TimedGraph() = default;
  void* stream_ = nullptr;
  void* executable_ = nullptr;
  void* begin_ = nullptr;  // events
  void* end_ = nullptr;
};

// Waits for the stream. INTERNAL when something on it failed.
absl::Status SynchronizeStream(void* stream);

// Bytes per second of a kernel that sums all 16-byte words of up to 4 GiB, at most half of what is
// free: the best of several grids, each the median of five graphs of four passes.
absl::StatusOr<double> MeasureReadRate(void* stream, const BenchDevice& device);

// Seconds per node of a graph of 200 empty kernels: the floor below every other time.
absl::StatusOr<double> MeasureEmptyNode(void* stream);

}  // namespace gradq
