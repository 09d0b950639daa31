#pragma once

// Parsed shards of the job that a worker is on, so that the nodes of a path and the tasks of a
// stage don't read them again. Bounded in memory: what was used longest ago goes first. Compute
// thread.

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "lib/format/quantized_linear.h"

namespace gradq {

class ShardCache {
 public:
  // Keeps shards of `memory_limit` bytes in all, at least the last one.
  explicit ShardCache(int64_t memory_limit) : memory_limit_(memory_limit) {}

  // The shard of this digest (hex SHA-256), from `read` when it is not here. shared_ptr: the cache
  // may drop what a task still uses. Errors of `read`; DATA_LOSS when its bytes have another
  // digest; INVALID_ARGUMENT when they are no shard.
  absl::StatusOr<std::shared_ptr<const QuantizedLinear>> Get(
      const std::string& sha256, absl::FunctionRef<absl::StatusOr<std::string>()> read);
  void Clear();
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::shared_ptr<const QuantizedLinear> linear;
    int64_t bytes = 0;
    std::list<std::string>::iterator use;
  };
  const int64_t memory_limit_;
  int64_t bytes_ = 0;
  std::map<std::string, Entry> entries_;
  std::list<std::string> used_;  // digests, the last used first
};

}  // namespace gradq
