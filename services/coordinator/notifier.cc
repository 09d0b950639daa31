#include "services/coordinator/notifier.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace gradq {

Notifier::Notifier(const Clock& clock) : clock_(clock), thread_([this] { Run(); }) {}

Notifier::~Notifier() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    ending_ = true;
    ++changes_;
  }
  wake_.notify_all();
  thread_.join();
}

void Notifier::Add(Poll poll) {
  {
    const std::lock_guard lock(mutex_);
    added_.push_back({std::move(poll), clock_.Monotonic(), -1});
  }
  wake_.notify_all();
}

void Notifier::Poke() {
  {
    const std::lock_guard lock(mutex_);
    ++changes_;
  }
  wake_.notify_all();
}

void Notifier::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    ++changes_;
  }
  wake_.notify_all();
}

void Notifier::Run() {
  std::list<Waiter> waiters;
  while (true) {
    int64_t changes;
    bool stopping;
    {
      std::unique_lock lock(mutex_);
      waiters.splice(waiters.end(), added_);
      if (ending_ && waiters.empty()) return;
      absl::Duration next = clock_.Monotonic() + absl::Seconds(60);
      bool due = false;
      for (const Waiter& waiter : waiters) {
        due = due || waiter.seen != changes_;
        next = std::min(next, waiter.next);
      }
      const absl::Duration pause = next - clock_.Monotonic();
      if (!due && pause > absl::ZeroDuration()) {
        wake_.wait_for(lock, absl::ToChronoMicroseconds(pause) + std::chrono::microseconds(1));
        waiters.splice(waiters.end(), added_);
      }
      changes = changes_;
      stopping = stopping_;
    }
    const absl::Duration now = clock_.Monotonic();
    for (auto it = waiters.begin(); it != waiters.end();) {
      if (it->seen == changes && it->next > now) {
        ++it;
        continue;
      }
      it->seen = changes;
      const std::optional<absl::Duration> next = it->poll(stopping);
      if (next.has_value() && !stopping) {
        it->next = *next;
        ++it;
      } else {
        it = waiters.erase(it);
      }
    }
  }
}

}  // namespace gradq
