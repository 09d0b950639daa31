#include "services/worker/shard_cache.h"

#include <utility>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {

absl::StatusOr<std::shared_ptr<const QuantizedLinear>> ShardCache::Get(
    const std::string& sha256, absl::FunctionRef<absl::StatusOr<std::string>()> read) {
  if (const auto found = entries_.find(sha256); found != entries_.end()) {
    used_.splice(used_.begin(), used_, found->second.use);
    return found->second.linear;
  }
  GRADQ_ASSIGN_OR_RETURN(const std::string bytes, read());
  if (Sha256Hex(bytes) != sha256) {
    return absl::DataLossError(StrCat("shard has another digest than announced: ", sha256));
  }
  GRADQ_ASSIGN_OR_RETURN(QuantizedLinear parsed, ParseShard(bytes));
  auto linear = std::make_shared<const QuantizedLinear>(std::move(parsed));
  used_.push_front(sha256);
  const auto size = static_cast<int64_t>(bytes.size());
  entries_[sha256] = {linear, size, used_.begin()};
  bytes_ += size;
  while (bytes_ > memory_limit_ && used_.size() > 1) {
    const auto last = entries_.find(used_.back());
    bytes_ -= last->second.bytes;
    entries_.erase(last);
    used_.pop_back();
  }
  return linear;
}

void ShardCache::Clear() {
  entries_.clear();
  used_.clear();
  bytes_ = 0;
}

}  // namespace gradq
