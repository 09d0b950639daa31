#include "lib/base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"

namespace gradq {

// Threads enter and leave a call without the mutex: with calls of some 100 µs, threads that queue
// for it would spend a good part of them asleep. Who enters counts itself in `running` first and
// then looks at `body`; who ends a call clears `body` first and then waits for `running` to be 0.
// Both are sequentially consistent, so that a thread which found a body is waited for. The mutex
// only guards sleeping.
struct ThreadPool::State {
  using Body = absl::FunctionRef<void(int64_t, int)>;
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::atomic<const Body*> body{nullptr};  // null: no call takes further threads
  int64_t count = 0;                       // written only while `body` is null and nobody is inside
  std::atomic<int64_t> next{0};
  std::atomic<int> running{0};  // threads of the pool that entered, or look whether they can
  std::atomic<bool> caller_sleeps{false};
  std::atomic<int64_t> generation{0};
  std::atomic<bool> stop{false};
  std::chrono::nanoseconds spin{0};
  std::exception_ptr thrown;
  std::vector<std::thread> threads;

  void Work(const Body& work, int worker) {
    try {
      for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) work(i, worker);
    } catch (...) {
      // Nobody starts another item; items under way end.
      next.store(count);
      std::lock_guard lock(mutex);
      if (thrown == nullptr) thrown = std::current_exception();
    }
  }

  // Returns when `ready` holds or the time for spinning is over. Conditions are read again under
  // the mutex afterwards.
  template <typename Ready>
  void Spin(const Ready& ready) const {
    if (spin.count() == 0) return;
    const auto end = std::chrono::steady_clock::now() + spin;
    while (!ready() && std::chrono::steady_clock::now() < end) {
      for (int i = 0; i < 16 && !ready(); ++i) Pause();
    }
  }

  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void Loop(int worker) {
    int64_t seen = 0;
    const auto called = [&] { return stop || generation != seen; };
    while (true) {
      Spin(called);
      if (!called()) {
        std::unique_lock lock(mutex);
        wake.wait(lock, called);
      }
      if (stop) return;
      seen = generation;
      ++running;
      // Null: too late for this call. Nobody waited, so that a thread which the machine is slow to
      // run delays nothing.
      if (const Body* work = body; work != nullptr) Work(*work, worker);
      if (--running == 0 && caller_sleeps) {
        std::lock_guard lock(mutex);
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads, absl::Duration spin)
    : threads_(threads), state_(std::make_unique<State>()) {
  GRADQ_CHECK(threads >= 1);
  state_->spin = absl::ToChronoNanoseconds(spin);
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
  GRADQ_CHECK(state_->body == nullptr);
  state_->count = count;
  state_->next = 0;
  state_->body = &body;
  {
    std::lock_guard lock(state_->mutex);
    ++state_->generation;
  }
  state_->wake.notify_all();
  state_->Work(body, 0);
  state_->body = nullptr;
  const auto all_left = [&] { return state_->running == 0; };
  state_->Spin(all_left);
  if (!all_left()) {
    std::unique_lock lock(state_->mutex);
    state_->caller_sleeps = true;
    state_->done.wait(lock, all_left);
    state_->caller_sleeps = false;
  }
  if (state_->thrown != nullptr) {
    std::rethrow_exception(std::exchange(state_->thrown, nullptr));
  }
}

}  // namespace gradq
