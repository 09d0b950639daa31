#include "lib/base/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "lib/base/status_macros.h"

namespace gradq {

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  const absl::FunctionRef<void(int64_t, int)>* body = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  int running = 0;
  int64_t generation = 0;
  bool stop = false;
  std::vector<std::thread> threads;

  void Work(int worker) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) (*body)(i, worker);
  }

  void Loop(int worker) {
    int64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      lock.unlock();
      Work(worker);
      lock.lock();
      if (--running == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), state_(std::make_unique<State>()) {
  GRADQ_CHECK(threads >= 1);
  for (int worker = 1; worker < threads; ++worker) {
    state_->threads.emplace_back([state = state_.get(), worker] { state->Loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t, int)> body) {
  if (count <= 0) return;
  if (threads_ == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  {
    std::lock_guard lock(state_->mutex);
    GRADQ_CHECK(state_->body == nullptr);
    state_->body = &body;
    state_->count = count;
    state_->next = 0;
    state_->running = threads_ - 1;
    ++state_->generation;
  }
  state_->wake.notify_all();
  state_->Work(0);
  std::unique_lock lock(state_->mutex);
  state_->done.wait(lock, [&] { return state_->running == 0; });
  state_->body = nullptr;
}

}  // namespace gradq
