#include "lib/pipeline/prefetch_reader.h"

#include <chrono>
#include <utility>

namespace gradq {
namespace {

constexpr size_t kAhead = 1;
constexpr std::chrono::milliseconds kAskAgain(20);

}  // namespace

PrefetchReader::PrefetchReader(ChunkReader* source, std::function<bool()> cancelled)
    : source_(source), cancelled_(std::move(cancelled)), thread_([this] { ReadAhead(); }) {}

PrefetchReader::~PrefetchReader() {
  Cancel();
  thread_.join();
}

void PrefetchReader::Cancel() {
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }
  source_->Cancel();
}

void PrefetchReader::ReadAhead() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return ended_ || ahead_.size() < kAhead; });
      if (ended_) return;
    }
    absl::StatusOr<Chunk> chunk = source_->Next();
    const bool last = !chunk.ok();
    std::lock_guard lock(mutex_);
    ahead_.push_back(std::move(chunk));
    changed_.notify_all();
    if (last) return;
  }
}

absl::StatusOr<Chunk> PrefetchReader::Next() {
  std::unique_lock lock(mutex_);
  while (ahead_.empty() && !ended_) {
    changed_.wait_for(lock, kAskAgain);
    if (ahead_.empty() && cancelled_ != nullptr && cancelled_()) {
      lock.unlock();
      Cancel();
      lock.lock();
    }
  }
  if (ended_) return absl::CancelledError("reader was stopped");
  if (!ahead_.front().ok()) return ahead_.front().status();  // stays: the end is final
  absl::StatusOr<Chunk> chunk = std::move(ahead_.front());
  ahead_.pop_front();
  changed_.notify_all();
  return chunk;
}

}  // namespace gradq
