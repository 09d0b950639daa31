#include "services/inference_worker/compute_thread.h"

#include <utility>

#include "absl/time/time.h"
#include "lib/base/status_macros.h"
#include "lib/transformer/numerics.h"

namespace gradq {
namespace {

// A decoded token is some hundred short products: threads that slept between them would spend most
// of their time waking up.
constexpr absl::Duration kSpin = absl::Microseconds(50);

}  // namespace

ComputeThread::ComputeThread(int threads, std::string device, ComputeType compute_type)
    : pool_(threads, kSpin), device_(std::move(device)), compute_type_(compute_type) {
  thread_ = std::thread([this] { Loop(); });
}

absl::StatusOr<std::unique_ptr<ComputeThread>> ComputeThread::Start(int threads,
                                                                    const std::string& device,
                                                                    ComputeType compute_type) {
  GRADQ_RETURN_IF_ERROR(CheckComputeDevice(device));
  std::unique_ptr<ComputeThread> compute(new ComputeThread(threads, device, compute_type));
  // libtorch's thread counts belong to the thread that sets them.
  absl::StatusOr<std::string> numerics;
  compute->Run([&] { numerics = SetUpNumerics(threads, device); });
  GRADQ_ASSIGN_OR_RETURN(compute->numerics_class_, std::move(numerics));
  return compute;
}

ComputeThread::~ComputeThread() {
  {
    std::lock_guard lock(mutex_);
    GRADQ_CHECK(queue_.empty());
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void ComputeThread::Run(absl::FunctionRef<void()> work) {
  Item item{.work = work};
  std::unique_lock lock(mutex_);
  queue_.push_back(&item);
  wake_.notify_one();
  finished_.wait(lock, [&] { return item.done; });
}

void ComputeThread::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Item* item = queue_.front();
    lock.unlock();
    item->work();
    lock.lock();
    queue_.pop_front();
    item->done = true;
    finished_.notify_all();
  }
}

}  // namespace gradq
