#pragma once

// The coordinator's state as Prometheus text, read from the core at each scrape. Keeps only how far
// it has read the events. Thread-safe.

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "services/coordinator/coordinator.h"

namespace gradq {

class Metrics {
 public:
  explicit Metrics(Coordinator* coordinator) : coordinator_(*coordinator) {}
  // UNAVAILABLE when the store can't be read.
  absl::StatusOr<std::string> Scrape();

 private:
  absl::Status ReadEvents();

  Coordinator& coordinator_;
  std::mutex mutex_;
  int64_t last_seq_ = 0;
  std::map<std::string, int64_t> events_;  // by type, since the store was made
};

}  // namespace gradq
