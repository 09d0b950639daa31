#pragma once

// The one thread of gradq-inference that touches tensors. RPC threads and the task loop hand it
// work and wait; work runs one after the other in the order of arrival. Thread-safe. Shows no ATen.

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "lib/base/thread_pool.h"
#include "lib/inference/model.h"

namespace gradq {

class ComputeThread {
 public:
  // Starts it and sets up its numerics. INVALID_ARGUMENT and FAILED_PRECONDITION as
  // CheckComputeDevice.
  static absl::StatusOr<std::unique_ptr<ComputeThread>> Start(
      int threads, const std::string& device, ComputeType compute_type = ComputeType::kDefault);
  // Nobody may wait in Run.
  ~ComputeThread();
  ComputeThread(const ComputeThread&) = delete;
  ComputeThread& operator=(const ComputeThread&) = delete;

  // Returns when `work` has run. Not from `work` itself.
  void Run(absl::FunctionRef<void()> work);

  // For use by work.
  ThreadPool* pool() { return &pool_; }
  const std::string& device() const { return device_; }
  // How its models are loaded; lives as long as this.
  LoadOptions load_options() {
    return {.device = device_, .compute_type = compute_type_, .pool = &pool_};
  }
  const std::string& numerics_class() const { return numerics_class_; }

 private:
  struct Item {
    absl::FunctionRef<void()> work;
    bool done = false;
  };

  ComputeThread(int threads, std::string device, ComputeType compute_type);
  void Loop();

  ThreadPool pool_;
  const std::string device_;
  const ComputeType compute_type_;
  std::string numerics_class_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable finished_;
  std::deque<Item*> queue_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace gradq
