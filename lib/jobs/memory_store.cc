#include <algorithm>
#include <map>
#include <utility>

#include "lib/base/strings.h"
#include "lib/jobs/job_store.h"

namespace gradq {
namespace {

class MemoryStore final : public JobStore {
 public:
  absl::Status Commit(const StoreBatch& batch) override {
    int64_t last = last_seq_;
    for (const StoreEvent& event : batch.events) {
      if (event.seq <= last) {
        return absl::InternalError(StrCat("event seq does not increase: ", event.seq, ", ", last));
      }
      last = event.seq;
    }
    for (const StoreRecord& record : batch.records) {
      if (record.data.empty()) {
        records_.erase({record.table, record.key});
      } else {
        records_[{record.table, record.key}] = record.data;
      }
    }
    events_.insert(events_.end(), batch.events.begin(), batch.events.end());
    last_seq_ = last;
    return absl::OkStatus();
  }

  absl::StatusOr<StoreContent> Load() override {
    StoreContent content;
    for (const auto& [key, data] : records_) {
      content.records.push_back({key.first, key.second, data});
    }
    content.last_seq = last_seq_;
    content.epoch = ++epoch_;
    return content;
  }

  absl::StatusOr<std::vector<StoreEvent>> Events(const std::string& job, int64_t after,
                                                 int limit) override {
    std::vector<StoreEvent> found;
    auto next =
        std::upper_bound(events_.begin(), events_.end(), after,
                         [](int64_t seq, const StoreEvent& event) { return seq < event.seq; });
    for (; next != events_.end() && static_cast<int>(found.size()) < limit; ++next) {
      if (job.empty() || next->job == job) found.push_back(*next);
    }
    return found;
  }

 private:
  std::map<std::pair<StoreRecord::Table, std::string>, std::string> records_;
  std::vector<StoreEvent> events_;
  int64_t last_seq_ = 0;
  int64_t epoch_ = 0;
};

}  // namespace

std::unique_ptr<JobStore> MakeMemoryStore() { return std::make_unique<MemoryStore>(); }

}  // namespace gradq
