#include "lib/base/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace gradq {
namespace {

class RealClock : public Clock {
 public:
  absl::Duration Monotonic() const override {
    return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
  absl::Time Wall() const override { return absl::Now(); }
};

}  // namespace

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace gradq
