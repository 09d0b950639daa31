#pragma once

// Time, injected so that leases and timeouts can be simulated. Clock::Real() is thread-safe and
// lives for the process.

#include "absl/time/time.h"

namespace gradq {

class Clock {
 public:
  virtual ~Clock() = default;

  // Monotonic; origin arbitrary but fixed for the process. For leases and durations.
  virtual absl::Duration Monotonic() const = 0;

  // Wall time. Only ever displayed and stored, never compared for expiry.
  virtual absl::Time Wall() const = 0;

  static const Clock& Real();
};

// For tests: stands still until told. Not thread-safe.
class ManualClock : public Clock {
 public:
  absl::Duration Monotonic() const override { return now_; }
  absl::Time Wall() const override { return absl::FromUnixSeconds(1'700'000'000) + now_; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  absl::Duration now_ = absl::ZeroDuration();
};

}  // namespace gradq
