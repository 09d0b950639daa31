#pragma once

// Long polls without a thread each: LeaseTask and WatchJob leave a poll function here, which one
// thread calls after every change of the core and at the time it asked for. Thread-safe.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/time/time.h"
#include "lib/base/clock.h"

namespace gradq {

class Notifier {
 public:
  // Called on the notifier's thread with no lock held. `stopping`: answer now, this is the last
  // call. The result is the monotonic time of the next call at the latest; nullopt: done, forget
  // this function.
  using Poll = std::function<std::optional<absl::Duration>(bool stopping)>;

  explicit Notifier(const Clock& clock);
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  // First call as soon as the thread is free.
  void Add(Poll poll);
  // Something changed: every function is called again.
  void Poke();
  // Calls every function with `stopping` once; those added later are called the same way and
  // forgotten.
  void Stop();

 private:
  struct Waiter {
    Poll poll;
    absl::Duration next;
    int64_t seen = -1;  // the change it was called for
  };
  void Run();

  const Clock& clock_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::list<Waiter> added_;
  int64_t changes_ = 0;
  bool stopping_ = false;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace gradq
