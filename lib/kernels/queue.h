#pragma once

// Where a kernel with a CPU and a CUDA side runs: at once on the calling thread, or enqueued on a
// CUDA stream. Value type; the stream must outlive what is enqueued on it.

namespace gradq::kernels {

class Queue {
 public:
  // The plain loops that are the oracle of the CUDA side.
  static Queue Cpu() { return Queue(false, nullptr); }
  // `stream` is a cudaStream_t; null is the legacy default stream. Kernels go to the device that
  // is current on the calling thread.
  static Queue Cuda(void* stream) { return Queue(true, stream); }

  bool is_cuda() const { return cuda_; }
  void* stream() const { return stream_; }

 private:
  Queue(bool cuda, void* stream) : cuda_(cuda), stream_(stream) {}
  bool cuda_;
  void* stream_;
};

// Element type of activations.
enum class FloatType { kFloat32, kFloat16, kBFloat16 };

}  // namespace gradq::kernels
