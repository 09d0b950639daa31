#include "lib/pipeline/chunk_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

absl::Status WriteAll(int fd, std::span<const std::byte> data, int64_t offset,
                      const std::string& folder) {
  while (!data.empty()) {
    const ssize_t written = pwrite(fd, data.data(), data.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoToStatus(errno, "write spool file", folder);
    data = data.subspan(static_cast<size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

absl::Status ReadAll(int fd, std::span<std::byte> out, int64_t offset, const std::string& folder) {
  while (!out.empty()) {
    const ssize_t got = pread(fd, out.data(), out.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoToStatus(errno, "read spool file", folder);
    if (got == 0) return absl::DataLossError(StrCat("spool file is cut off: ", folder));
    out = out.subspan(static_cast<size_t>(got));
    offset += got;
  }
  return absl::OkStatus();
}

bool Matches(const StreamKey& pattern, const StreamKey& key) {
  if (pattern.job.empty()) return true;
  if (key.job != pattern.job) return false;
  if (pattern.task.empty()) return true;
  if (key.round != pattern.round || key.task != pattern.task || key.attempt != pattern.attempt) {
    return false;
  }
  return pattern.lane.empty() || key.lane == pattern.lane;
}

}  // namespace

struct ChunkStore::Stream {
  // An open, already unlinked file; its space returns to the disk when the last reader lets go.
  struct SpoolFile {
    int fd = -1;
    int64_t size = 0;
    ~SpoolFile() {
      if (fd >= 0) close(fd);
    }
  };
  struct Slot {
    Chunk chunk;          // without data when spooled
    int64_t offset = -1;  // in the spool file; -1: in memory
    int64_t bytes = 0;
  };
  struct Waiter {
    int index = 0;
    std::function<void()> wake;
  };
  enum class State { kOpen, kComplete, kGone };

  StreamKey key;
  State state = State::kOpen;
  std::vector<Slot> slots;
  // shared_ptr: a read in progress keeps the file while Free drops it.
  std::shared_ptr<SpoolFile> spool;
  std::vector<Waiter> waiters;
  std::condition_variable changed;

  bool Answers(int index, bool shut_down) const {
    return shut_down || state != State::kOpen || index < static_cast<int>(slots.size());
  }
  // Waiters whose question is answered; called under the lock, to be woken after it.
  std::vector<std::function<void()>> TakeReady(bool shut_down) {
    std::vector<std::function<void()>> ready;
    auto keep = std::partition(waiters.begin(), waiters.end(), [&](const Waiter& waiter) {
      return !Answers(waiter.index, shut_down);
    });
    for (auto it = keep; it != waiters.end(); ++it) ready.push_back(std::move(it->wake));
    waiters.erase(keep, waiters.end());
    return ready;
  }
};

class ChunkStore::Writer : public ChunkWriter {
 public:
  Writer(ChunkStore* store, std::shared_ptr<Stream> stream)
      : store_(store), stream_(std::move(stream)) {}
  ~Writer() override { store_->End(*stream_, /*complete=*/false); }
  absl::StatusOr<std::string> Append(Chunk chunk) override {
    return store_->Append(*stream_, std::move(chunk));
  }
  absl::Status Complete() override {
    store_->End(*stream_, /*complete=*/true);
    return absl::OkStatus();
  }

 private:
  ChunkStore* store_;
  std::shared_ptr<Stream> stream_;
};

class ChunkStore::Reader : public ChunkReader {
 public:
  Reader(ChunkStore* store, std::shared_ptr<Stream> stream, int index)
      : store_(store), stream_(std::move(stream)), index_(index) {}

  absl::StatusOr<Chunk> Next() override {
    {
      std::unique_lock lock(store_->mutex_);
      stream_->changed.wait(
          lock, [&] { return cancelled_ || stream_->Answers(index_, store_->shut_down_); });
      if (cancelled_) {
        return absl::CancelledError(StrCat("reader was stopped: ", ToString(stream_->key)));
      }
    }
    GRADQ_ASSIGN_OR_RETURN(std::optional<Chunk> chunk, store_->Get(*stream_, index_));
    GRADQ_CHECK(chunk.has_value());
    ++index_;
    return *std::move(chunk);
  }
  void Cancel() override {
    std::lock_guard lock(store_->mutex_);
    cancelled_ = true;
    stream_->changed.notify_all();
  }

 private:
  ChunkStore* store_;
  std::shared_ptr<Stream> stream_;
  int index_;
  bool cancelled_ = false;  // guarded by the store's mutex
};

absl::StatusOr<std::unique_ptr<ChunkStore>> ChunkStore::Open(ChunkStoreOptions options) {
  if (!options.spool_dir.empty()) GRADQ_RETURN_IF_ERROR(MakeFolders(options.spool_dir));
  return std::unique_ptr<ChunkStore>(new ChunkStore(std::move(options)));
}

ChunkStore::~ChunkStore() = default;

absl::StatusOr<std::unique_ptr<ChunkWriter>> ChunkStore::Create(const StreamKey& key) {
  auto stream = std::make_shared<Stream>();
  stream->key = key;
  {
    std::lock_guard lock(mutex_);
    if (!streams_.emplace(key, stream).second) {
      return absl::AlreadyExistsError(StrCat("stream was begun before: ", ToString(key)));
    }
  }
  return std::make_unique<Writer>(this, std::move(stream));
}

std::shared_ptr<ChunkStore::Stream> ChunkStore::Find(const StreamKey& key) const {
  std::lock_guard lock(mutex_);
  const auto it = streams_.find(key);
  return it == streams_.end() ? nullptr : it->second;
}

bool ChunkStore::Contains(const StreamKey& key) const { return Find(key) != nullptr; }

absl::StatusOr<std::unique_ptr<ChunkReader>> ChunkStore::Read(const StreamKey& key,
                                                              int first_index) {
  std::shared_ptr<Stream> stream = Find(key);
  if (stream == nullptr) {
    return absl::NotFoundError(StrCat("stream is not here: ", ToString(key)));
  }
  return std::make_unique<Reader>(this, std::move(stream), first_index);
}

absl::StatusOr<std::optional<Chunk>> ChunkStore::TryGet(const StreamKey& key, int index) {
  std::shared_ptr<Stream> stream = Find(key);
  if (stream == nullptr) {
    return absl::NotFoundError(StrCat("stream is not here: ", ToString(key)));
  }
  return Get(*stream, index);
}

absl::StatusOr<std::optional<Chunk>> ChunkStore::Get(Stream& stream, int index) {
  Stream::Slot slot;
  std::shared_ptr<Stream::SpoolFile> spool;
  {
    std::lock_guard lock(mutex_);
    if (shut_down_) return absl::UnavailableError("worker shuts down");
    if (stream.state == Stream::State::kGone) {
      return absl::NotFoundError(StrCat("stream is gone: ", ToString(stream.key)));
    }
    if (index < 0) return absl::InvalidArgumentError(StrCat("chunk index out of range: ", index));
    if (index >= static_cast<int>(stream.slots.size())) {
      if (stream.state == Stream::State::kOpen) return std::nullopt;
      return absl::OutOfRangeError(StrCat("stream is complete: ", ToString(stream.key), ", ",
                                          stream.slots.size(), " chunks"));
    }
    slot = stream.slots[index];
    spool = stream.spool;
  }
  if (slot.offset < 0) return std::move(slot.chunk);

  int64_t offset = slot.offset;
  for (HostTensor& tensor : slot.chunk.tensors) {
    std::shared_ptr<std::byte> bytes = AllocateBytes(tensor.data.size);
    GRADQ_RETURN_IF_ERROR(
        ReadAll(spool->fd, {bytes.get(), tensor.data.size}, offset, options_.spool_dir));
    offset += static_cast<int64_t>(tensor.data.size);
    tensor.data.data = std::move(bytes);
  }
  if (ChunkDigest(slot.chunk) != slot.chunk.sha256) {
    return absl::DataLossError(
        StrCat("spooled chunk is damaged: ", ToString(stream.key), ", ", index));
  }
  return std::move(slot.chunk);
}

void ChunkStore::WhenReady(const StreamKey& key, int index, std::function<void()> wake) {
  {
    std::lock_guard lock(mutex_);
    const auto it = streams_.find(key);
    if (it != streams_.end() && !it->second->Answers(index, shut_down_)) {
      it->second->waiters.push_back({index, std::move(wake)});
      return;
    }
  }
  wake();
}

absl::Status ChunkStore::Spool(Stream& stream, const Chunk& chunk, int64_t* offset) {
  if (stream.spool == nullptr) {
    static std::atomic<int64_t> sequence = 0;
    const std::string path =
        StrCat(options_.spool_dir, "/gradq-", getpid(), "-", sequence.fetch_add(1), ".spool");
    auto file = std::make_shared<Stream::SpoolFile>();
    file->fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file->fd < 0) return ErrnoToStatus(errno, "create spool file", path);
    unlink(path.c_str());
    std::lock_guard lock(mutex_);
    stream.spool = std::move(file);
  }
  *offset = stream.spool->size;
  int64_t position = *offset;
  for (const HostTensor& tensor : chunk.tensors) {
    GRADQ_RETURN_IF_ERROR(
        WriteAll(stream.spool->fd, tensor.data.bytes(), position, options_.spool_dir));
    position += static_cast<int64_t>(tensor.data.size);
  }
  stream.spool->size = position;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ChunkStore::Append(Stream& stream, Chunk chunk) {
  chunk.sha256 = ChunkDigest(chunk);
  const std::string digest = chunk.sha256;
  Stream::Slot slot;
  slot.bytes = chunk.bytes();
  bool in_memory = false;
  {
    // Bytes are reserved before they are written, so that two writers cannot pass a limit together.
    std::lock_guard lock(mutex_);
    if (stream.state == Stream::State::kGone) {
      return absl::NotFoundError(StrCat("stream was freed while written: ", ToString(stream.key)));
    }
    GRADQ_CHECK(stream.state == Stream::State::kOpen);
    in_memory = memory_bytes_ + slot.bytes <= options_.memory_limit;
    if (in_memory) {
      memory_bytes_ += slot.bytes;
    } else if (options_.spool_dir.empty()) {
      return absl::ResourceExhaustedError(
          StrCat("stream memory is full and no spool folder is set: limit ", options_.memory_limit,
                 ", held ", memory_bytes_, ", wanted ", slot.bytes));
    } else if (spool_bytes_ + slot.bytes > options_.spool_limit) {
      return absl::ResourceExhaustedError(StrCat("stream memory and spool are full: spool limit ",
                                                 options_.spool_limit, ", held ", spool_bytes_,
                                                 ", wanted ", slot.bytes));
    } else {
      spool_bytes_ += slot.bytes;
    }
  }
  if (!in_memory) {
    if (absl::Status status = Spool(stream, chunk, &slot.offset); !status.ok()) {
      std::lock_guard lock(mutex_);
      spool_bytes_ -= slot.bytes;
      return status;
    }
    for (HostTensor& tensor : chunk.tensors) tensor.data.data = nullptr;
  }
  slot.chunk = std::move(chunk);

  std::vector<std::function<void()>> ready;
  {
    std::lock_guard lock(mutex_);
    if (stream.state == Stream::State::kGone) {
      (in_memory ? memory_bytes_ : spool_bytes_) -= slot.bytes;
      return absl::NotFoundError(StrCat("stream was freed while written: ", ToString(stream.key)));
    }
    stream.slots.push_back(std::move(slot));
    stream.changed.notify_all();
    ready = stream.TakeReady(shut_down_);
  }
  for (auto& wake : ready) wake();
  return digest;
}

void ChunkStore::End(Stream& stream, bool complete) {
  std::vector<std::function<void()>> ready;
  std::shared_ptr<Stream> keep;
  std::vector<Stream::Slot> dropped;  // freed after the lock
  {
    std::lock_guard lock(mutex_);
    if (stream.state != Stream::State::kOpen) return;
    if (complete) {
      stream.state = Stream::State::kComplete;
    } else {
      stream.state = Stream::State::kGone;
      for (const Stream::Slot& slot : stream.slots) {
        (slot.offset < 0 ? memory_bytes_ : spool_bytes_) -= slot.bytes;
      }
      dropped.swap(stream.slots);
      stream.spool.reset();
      const auto it = streams_.find(stream.key);
      if (it != streams_.end() && it->second.get() == &stream) {
        keep = std::move(it->second);
        streams_.erase(it);
      }
    }
    stream.changed.notify_all();
    ready = stream.TakeReady(shut_down_);
  }
  for (auto& wake : ready) wake();
}

void ChunkStore::Free(const StreamKey& pattern) {
  std::vector<std::shared_ptr<Stream>> freed;
  std::vector<std::function<void()>> ready;
  std::vector<std::vector<Stream::Slot>> dropped;
  {
    std::lock_guard lock(mutex_);
    for (auto it = streams_.begin(); it != streams_.end();) {
      if (!Matches(pattern, it->first)) {
        ++it;
        continue;
      }
      Stream& stream = *it->second;
      stream.state = Stream::State::kGone;
      for (const Stream::Slot& slot : stream.slots) {
        (slot.offset < 0 ? memory_bytes_ : spool_bytes_) -= slot.bytes;
      }
      dropped.push_back(std::move(stream.slots));
      stream.slots.clear();
      // A writer that is just now spooling still uses the file; it drops the stream right after.
      stream.changed.notify_all();
      for (auto& wake : stream.TakeReady(shut_down_)) ready.push_back(std::move(wake));
      freed.push_back(std::move(it->second));
      it = streams_.erase(it);
    }
  }
  for (auto& wake : ready) wake();
}

void ChunkStore::Shutdown() {
  std::vector<std::function<void()>> ready;
  {
    std::lock_guard lock(mutex_);
    shut_down_ = true;
    for (auto& [key, stream] : streams_) {
      stream->changed.notify_all();
      for (auto& wake : stream->TakeReady(true)) ready.push_back(std::move(wake));
    }
  }
  for (auto& wake : ready) wake();
}

int64_t ChunkStore::memory_bytes() const {
  std::lock_guard lock(mutex_);
  return memory_bytes_;
}

int64_t ChunkStore::spool_bytes() const {
  std::lock_guard lock(mutex_);
  return spool_bytes_;
}

}  // namespace gradq
