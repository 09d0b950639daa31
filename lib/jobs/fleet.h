#pragma once

// The workers the coordinator knows: sessions, what each holds a lease for, and the orders that
// travel in its heartbeat replies. In memory only; after a restart workers register again. Not
// thread-safe (the core is called under one mutex).

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"

namespace gradq {

// The one task a worker runs. A revoked one stays until the worker has shown that it stopped.
struct Slot {
  std::string task;
  int64_t attempt = 0;
  bool revoked = false;
  // A reader could not reach it: should the worker turn out dead, the task has lost a worker.
  bool suspect = false;
  absl::Duration last_listed = absl::ZeroDuration();
};

struct FreeOrder {
  int64_t number = 0;
  v1::StreamName stream;
  absl::Duration since = absl::ZeroDuration();
};

struct WorkerState {
  v1::Worker info;
  std::string session;  // empty when LOST or GONE
  absl::Duration last_seen = absl::ZeroDuration();
  // Known only from a running attempt in the store: it may finish that attempt, for anything else
  // it must register.
  bool ghost = false;
  // It said itself that it leaves: gone as soon as it is idle.
  bool leaving = false;
  std::optional<Slot> slot;
  std::vector<FreeOrder> free_orders;  // not acknowledged yet
  int64_t last_order = 0;
  bool acknowledges = false;

  bool alive() const { return !session.empty(); }
  bool ready() const { return alive() && !ghost && info.state() == v1::Worker::READY; }
};

class Fleet {
 public:
  // nullptr when unknown.
  WorkerState* FindSession(std::string_view session);
  const WorkerState* FindSession(std::string_view session) const;
  WorkerState* FindName(std::string_view name);

  // A live entry under info.name(), replacing what stood there.
  WorkerState& Put(v1::Worker info, std::string session, absl::Duration now);
  // Ends the session; the entry stays listed in `state`.
  void Retire(WorkerState* worker, v1::Worker::State state);
  void QueueFree(std::string_view session, v1::StreamName stream, absl::Duration now);
  // Forgets retired workers beyond the most recent `keep`, so that ever new names don't pile up.
  void Prune(size_t keep);

  std::map<std::string, WorkerState>& workers() { return workers_; }
  const std::map<std::string, WorkerState>& workers() const { return workers_; }

 private:
  std::map<std::string, WorkerState> workers_;  // by "workers/{id}"
  std::map<std::string, std::string, std::less<>> name_of_session_;
};

}  // namespace gradq
