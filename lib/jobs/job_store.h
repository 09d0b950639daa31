#pragma once

// Durable state of the coordinator, behind one interface so that SQLite, an in-memory fake and
// (later) PostgreSQL share a conformance suite. One caller at a time. A Commit is all or nothing
// and durable when it returns.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

// Serialized protos by name; empty `data` deletes.
struct StoreRecord {
  enum class Table { kJobs, kTasks, kRequests };
  Table table = Table::kJobs;
  std::string key;
  std::string data;
};

struct StoreEvent {
  int64_t seq = 0;  // given by the core, strictly increasing
  std::string job;
  std::string data;  // serialized v1.Event
};

struct StoreBatch {
  std::vector<StoreRecord> records;
  std::vector<StoreEvent> events;
};

struct StoreContent {
  std::vector<StoreRecord> records;  // by table, then key
  int64_t last_seq = 0;
  int64_t epoch = 0;  // +1 at each Open, durable
};

class JobStore {
 public:
  virtual ~JobStore() = default;
  // RESOURCE_EXHAUSTED (disk full), UNAVAILABLE (I/O). Nothing is applied on error.
  virtual absl::Status Commit(const StoreBatch& batch) = 0;
  virtual absl::StatusOr<StoreContent> Load() = 0;
  // Events with seq > after, oldest first, at most `limit`; of one job when `job` is not empty.
  virtual absl::StatusOr<std::vector<StoreEvent>> Events(const std::string& job, int64_t after,
                                                         int limit) = 0;
};

// FAILED_PRECONDITION when another process has it open; DATA_LOSS when quick_check fails.
absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteStore(const std::string& path);
std::unique_ptr<JobStore> MakeMemoryStore();

}  // namespace gradq
