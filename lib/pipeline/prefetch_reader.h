#pragma once

// Reads one chunk ahead on a thread of its own, so that waiting for the network overlaps with
// compute. Used by one thread (the compute thread).

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/statusor.h"
#include "lib/pipeline/chunk.h"

namespace gradq {

class PrefetchReader : public ChunkReader {
 public:
  // `source` must outlive this. `cancelled` is asked while Next waits; once true, the source is
  // cancelled and Next returns CANCELLED.
  PrefetchReader(ChunkReader* source, std::function<bool()> cancelled);
  ~PrefetchReader() override;
  absl::StatusOr<Chunk> Next() override;
  void Cancel() override;

 private:
  void ReadAhead();

  ChunkReader* const source_;
  const std::function<bool()> cancelled_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<absl::StatusOr<Chunk>> ahead_;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace gradq
