#include "lib/jobs/journal.h"

#include <utility>

#include "lib/base/status_macros.h"
#include "lib/jobs/proto_time.h"

namespace gradq {

void Journal::Put(StoreRecord::Table table, const std::string& key, std::string data) {
  records_[{table, key}] = std::move(data);
}

void Journal::AddEvent(absl::Time wall, const std::string& job, const std::string& subject,
                       std::string_view type, std::string message) {
  v1::Event event;
  event.set_seq(next_seq_);
  *event.mutable_time() = ToTimestamp(wall);
  event.set_job(job);
  event.set_subject(subject);
  event.set_type(std::string(type));
  event.set_message(std::move(message));
  events_.push_back({next_seq_++, job, event.SerializeAsString()});
}

absl::Status Journal::Commit() {
  if (empty()) return absl::OkStatus();
  StoreBatch batch;
  batch.records.reserve(records_.size());
  for (const auto& [key, data] : records_) batch.records.push_back({key.first, key.second, data});
  batch.events = events_;
  GRADQ_RETURN_IF_ERROR(store_->Commit(batch));
  records_.clear();
  events_.clear();
  return absl::OkStatus();
}

void Journal::Discard() {
  if (!events_.empty()) next_seq_ = events_.front().seq;
  records_.clear();
  events_.clear();
}

}  // namespace gradq
