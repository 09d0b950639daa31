#include "tests/bench/graph_timing_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda/cuda_status.cuh"
#include "lib/kernels/cuda_device.h"

namespace gradq {
namespace {

using kernels::FromCuda;
using kernels::LaunchStatus;

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // in flight per thread
constexpr int64_t kStep = int64_t{kThreads} * kLoads;
constexpr size_t kReadBytes = size_t{4} << 30;
constexpr int kPasses = 4;
constexpr int kEmptyNodes = 200;
constexpr int kRuns = 5;

__global__ void EmptyKernel() {}

// Words that no memory can compress.
__global__ void FillKernel(uint4* to, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const auto word = static_cast<uint32_t>(i) * 2654435761u;
    to[i] = make_uint4(word, word ^ (word >> 15), word * 40503u, ~word * 69069u);
  }
}

// `count` vectors, a multiple of kStep; a word per thread is written so that nothing is left out.
__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* from, int64_t count, uint32_t* out) {
  uint32_t sum = 0;
  for (int64_t i = blockIdx.x * kStep + threadIdx.x; i < count; i += gridDim.x * kStep) {
    uint4 v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) v[j] = __ldcs(from + i + j * kThreads);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum += v[j].x + v[j].y + v[j].z + v[j].w;
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Freed at the end of a scope.
class DeviceBytes {
 public:
  static absl::StatusOr<DeviceBytes> Allocate(size_t bytes) {
    void* data = nullptr;
    GRADQ_RETURN_IF_ERROR(FromCuda(cudaMalloc(&data, bytes), "cannot allocate device memory"));
    return DeviceBytes(data);
  }
  DeviceBytes(DeviceBytes&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceBytes& operator=(DeviceBytes&&) = delete;
  ~DeviceBytes() {
    if (data_ != nullptr) cudaFree(data_);
  }
  void* data() const { return data_; }

 private:
  explicit DeviceBytes(void* data) : data_(data) {}
  void* data_;
};

cudaStream_t Stream(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t Event(void* event) { return static_cast<cudaEvent_t>(event); }

absl::StatusOr<double> MedianSeconds(TimedGraph& graph) {
  std::vector<double> seconds;
  GRADQ_RETURN_IF_ERROR(graph.Run().status());  // the first is not counted
  for (int run = 0; run < kRuns; ++run) {
    GRADQ_ASSIGN_OR_RETURN(const double one, graph.Run());
    seconds.push_back(one);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kRuns / 2];
}

}  // namespace

absl::StatusOr<BenchDevice> OpenBenchDevice(int ordinal) {
  GRADQ_ASSIGN_OR_RETURN(const int count, kernels::CudaDeviceCount());
  if (count == 0) return absl::NotFoundError("no CUDA device: the driver shows none");
  GRADQ_ASSIGN_OR_RETURN(const kernels::CudaDevice found, kernels::QueryCudaDevice(ordinal));
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaSetDevice(ordinal), "cannot use CUDA device"));
  int l2 = 0;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, ordinal),
                                 "cannot query CUDA device"));
  return BenchDevice{found.name, found.multiprocessors, l2};
}

absl::StatusOr<TimedGraph> TimedGraph::Record(void* stream,
                                              absl::FunctionRef<absl::Status()> body) {
  TimedGraph timed;
  timed.stream_ = stream;
  cudaEvent_t event = nullptr;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaEventCreate(&event), "cannot create CUDA event"));
  timed.begin_ = event;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaEventCreate(&event), "cannot create CUDA event"));
  timed.end_ = event;
  // Relaxed: what a library allocates while it is recorded does not spoil the graph.
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaStreamBeginCapture(Stream(stream), cudaStreamCaptureModeRelaxed),
               "cannot record a CUDA graph"));
  const absl::Status recorded = body();
  cudaGraph_t graph = nullptr;
  const absl::Status ended =
      FromCuda(cudaStreamEndCapture(Stream(stream), &graph), "cannot record a CUDA graph");
  if (!recorded.ok() || !ended.ok()) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    return recorded.ok() ? ended : recorded;
  }
  cudaGraphExec_t executable = nullptr;
  const absl::Status made =
      FromCuda(cudaGraphInstantiate(&executable, graph, 0), "cannot instantiate a CUDA graph");
  cudaGraphDestroy(graph);
  GRADQ_RETURN_IF_ERROR(made);
  timed.executable_ = executable;
  return timed;
}

TimedGraph::TimedGraph(TimedGraph&& other) noexcept
    : stream_(other.stream_),
      executable_(std::exchange(other.executable_, nullptr)),
      begin_(std::exchange(other.begin_, nullptr)),
      end_(std::exchange(other.end_, nullptr)) {}

TimedGraph::~TimedGraph() {
  if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  if (begin_ != nullptr) cudaEventDestroy(Event(begin_));
  if (end_ != nullptr) cudaEventDestroy(Event(end_));
}

absl::StatusOr<double> TimedGraph::Run() {
  const cudaStream_t stream = Stream(stream_);
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaEventRecord(Event(begin_), stream), "cannot time a graph"));
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), stream),
                                 "cannot launch a graph"));
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaEventRecord(Event(end_), stream), "cannot time a graph"));
  GRADQ_RETURN_IF_ERROR(SynchronizeStream(stream_));
  float milliseconds = 0;
  GRADQ_RETURN_IF_ERROR(
      FromCuda(cudaEventElapsedTime(&milliseconds, Event(begin_), Event(end_)), "cannot time"));
  return milliseconds * 1e-3;
}

absl::Status SynchronizeStream(void* stream) {
  const cudaError_t error = cudaStreamSynchronize(Stream(stream));
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(StrCat("a kernel failed: ", cudaGetErrorString(error)));
}

absl::StatusOr<double> MeasureReadRate(void* stream, const BenchDevice& device) {
  size_t free = 0, total = 0;
  GRADQ_RETURN_IF_ERROR(FromCuda(cudaMemGetInfo(&free, &total), "cannot query CUDA memory"));
  const auto count =
      static_cast<int64_t>(std::min(kReadBytes, free / 2) / sizeof(uint4)) / kStep * kStep;
  const auto bytes = static_cast<double>(count) * sizeof(uint4);
  GRADQ_ASSIGN_OR_RETURN(const DeviceBytes memory,
                         DeviceBytes::Allocate(static_cast<size_t>(count) * sizeof(uint4)));
  constexpr int kMostBlocks = 32;  // per multiprocessor
  GRADQ_ASSIGN_OR_RETURN(const DeviceBytes sums,
                         DeviceBytes::Allocate(size_t{kMostBlocks} * kThreads * sizeof(uint32_t) *
                                               static_cast<size_t>(device.multiprocessors)));
  const auto* const from = static_cast<const uint4*>(memory.data());
  FillKernel<<<device.multiprocessors * 8, kThreads, 0, Stream(stream)>>>(
      static_cast<uint4*>(memory.data()), count);
  GRADQ_RETURN_IF_ERROR(LaunchStatus("fill"));
  double best = 0;
  for (const int blocks : {4, 8, 16, kMostBlocks}) {
    GRADQ_ASSIGN_OR_RETURN(
        TimedGraph graph, TimedGraph::Record(stream, [&] {
          for (int pass = 0; pass < kPasses; ++pass) {
            ReadKernel<<<device.multiprocessors * blocks, kThreads, 0, Stream(stream)>>>(
                from, count, static_cast<uint32_t*>(sums.data()));
          }
          return LaunchStatus("read");
        }));
    GRADQ_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(graph));
    best = std::max(best, kPasses * bytes / seconds);
  }
  return best;
}

absl::StatusOr<double> MeasureEmptyNode(void* stream) {
  GRADQ_ASSIGN_OR_RETURN(TimedGraph graph, TimedGraph::Record(stream, [&] {
                           for (int node = 0; node < kEmptyNodes; ++node) {
                             EmptyKernel<<<1, 32, 0, Stream(stream)>>>();
                           }
                           return LaunchStatus("empty");
                         }));
  GRADQ_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(graph));
  return seconds / kEmptyNodes;
}

}  // namespace gradq
