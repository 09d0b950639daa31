#pragma once

// The one compute pool of a process, set up once at start; tasks are index ranges whose result may
// not depend on which thread runs them. ParallelFor is called from one thread at a time (the
// compute thread); it may not be nested.

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"

namespace gradq {

class ThreadPool {
 public:
  // `threads` ≥ 1 counts the calling thread: ThreadPool(1) starts none. Threads that find no work
  // look for more during `spin` before they sleep: worth it where calls of some 100 µs follow each
  // other (waking a thread takes 20 to 100 µs), a waste elsewhere.
  explicit ThreadPool(int threads, absl::Duration spin = absl::ZeroDuration());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(i, worker) once for every i in [0, count), worker in [0, threads()); returns when
  // all are done. Items are handed out one by one in order of i, so that uneven ones balance.
  // When a body throws, no further items start, and the first exception is thrown here again.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t i, int worker)> body);

 private:
  struct State;
  int threads_;
  std::unique_ptr<State> state_;
};

}  // namespace gradq
