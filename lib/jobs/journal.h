#pragma once

// What changed since the last commit, and its commit as one transaction with its events. A commit
// that fails keeps everything for the next one: memory may run ahead of the store, but no call is
// answered before all that came before it is durable.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"
#include "lib/jobs/job_store.h"

namespace gradq {

class Journal {
 public:
  Journal(JobStore* store, int64_t last_seq) : store_(store), next_seq_(last_seq + 1) {}

  // Replaces an earlier record of the same key that is not committed yet.
  void Put(StoreRecord::Table table, const std::string& key, std::string data);
  void AddEvent(absl::Time wall, const std::string& job, const std::string& subject,
                std::string_view type, std::string message);
  bool empty() const { return records_.empty() && events_.empty(); }
  absl::Status Commit();
  // Forgets what is not committed (only right after a Commit that was OK nothing of it is older
  // than the caller's own call).
  void Discard();

 private:
  JobStore* store_;
  int64_t next_seq_;
  std::map<std::pair<StoreRecord::Table, std::string>, std::string> records_;
  std::vector<StoreEvent> events_;
};

}  // namespace gradq
