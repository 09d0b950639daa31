#include "lib/jobs/fleet.h"

#include <algorithm>
#include <utility>

#include "lib/base/status_macros.h"

namespace gradq {

WorkerState* Fleet::FindSession(std::string_view session) {
  const auto found = name_of_session_.find(session);
  return found == name_of_session_.end() ? nullptr : &workers_.at(found->second);
}

const WorkerState* Fleet::FindSession(std::string_view session) const {
  return const_cast<Fleet*>(this)->FindSession(session);
}

WorkerState* Fleet::FindName(std::string_view name) {
  const auto found = workers_.find(std::string(name));
  return found == workers_.end() ? nullptr : &found->second;
}

WorkerState& Fleet::Put(v1::Worker info, std::string session, absl::Duration now) {
  WorkerState& worker = workers_[info.name()];
  GRADQ_CHECK(!worker.alive());
  worker = WorkerState{};
  worker.info = std::move(info);
  worker.last_seen = now;
  name_of_session_[session] = worker.info.name();
  worker.session = std::move(session);
  return worker;
}

void Fleet::Retire(WorkerState* worker, v1::Worker::State state) {
  name_of_session_.erase(worker->session);
  worker->session.clear();
  worker->slot.reset();
  worker->free_orders.clear();
  worker->info.clear_task();
  worker->info.set_state(state);
}

void Fleet::QueueFree(std::string_view session, v1::StreamName stream, absl::Duration now) {
  WorkerState* worker = FindSession(session);
  if (worker == nullptr || worker->ghost) return;
  worker->free_orders.push_back({++worker->last_order, std::move(stream), now});
}

void Fleet::Prune(size_t keep) {
  std::vector<std::pair<absl::Duration, std::string>> retired;
  for (const auto& [name, worker] : workers_) {
    if (!worker.alive()) retired.emplace_back(worker.last_seen, name);
  }
  if (retired.size() <= keep) return;
  std::sort(retired.begin(), retired.end());
  for (size_t i = 0; i + keep < retired.size(); ++i) workers_.erase(retired[i].second);
}

}  // namespace gradq
