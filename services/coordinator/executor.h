#pragma once

// A few threads and a bounded queue for work that blocks (disk, tokenizer, the core's store), so
// that gRPC's own threads never wait. Thread-safe.

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gradq {

class Executor {
 public:
  Executor(int threads, size_t max_queued);
  // Runs what is queued, then joins.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False when the queue is full: nothing was taken.
  [[nodiscard]] bool Post(std::function<void()> work);

 private:
  void Run();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace gradq
