#pragma once

// The streams of one worker process: append-only logs of chunks by StreamKey, in memory first, then
// in spool files. One writer and any number of readers per stream, readers by index; readers wait
// for chunks that are not yet made. Thread-safe. Knows nothing of the network: services/worker
// serves it.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/pipeline/chunk.h"

namespace gradq {

struct ChunkStoreOptions {
  // Bytes of chunks kept in memory; what comes later is spooled.
  int64_t memory_limit = int64_t{4} << 30;
  // Folder for spool files, created when missing; empty: nothing is spooled. Files are unlinked as
  // soon as they are open, so that a killed process leaves nothing behind.
  std::string spool_dir{};
  int64_t spool_limit = 0;
};

class ChunkStore {
 public:
  // Errors of creating the spool folder, naming it.
  static absl::StatusOr<std::unique_ptr<ChunkStore>> Open(ChunkStoreOptions options);
  // Writers and readers may outlive the store's last call, not the store.
  ~ChunkStore();
  ChunkStore(const ChunkStore&) = delete;
  ChunkStore& operator=(const ChunkStore&) = delete;

  // ALREADY_EXISTS when the stream was begun before and not freed.
  absl::StatusOr<std::unique_ptr<ChunkWriter>> Create(const StreamKey& key);

  // A reader from chunk `first_index` on. NOT_FOUND: no such stream.
  absl::StatusOr<std::unique_ptr<ChunkReader>> Read(const StreamKey& key, int first_index = 0);
  bool Contains(const StreamKey& key) const;

  // Chunk `index`, without waiting: nullopt when it is not made yet. OUT_OF_RANGE: the stream is
  // complete and shorter. NOT_FOUND: never begun, freed or abandoned. DATA_LOSS: the spooled bytes
  // changed. UNAVAILABLE: shut down.
  absl::StatusOr<std::optional<Chunk>> TryGet(const StreamKey& key, int index);
  // Calls `wake` once, as soon as TryGet may answer otherwise than nullopt (at once when it already
  // does), from the thread that changed the stream: `wake` must only hand the news on.
  void WhenReady(const StreamKey& key, int index, std::function<void()> wake);

  // Frees streams: an empty lane means every lane of the attempt, an empty task everything of the
  // job. Chunks that readers hold stay valid; their next read answers NOT_FOUND.
  void Free(const StreamKey& pattern);

  // Every waiting and later read answers UNAVAILABLE. Writers go on.
  void Shutdown();

  int64_t memory_bytes() const;
  int64_t spool_bytes() const;

 private:
  struct Stream;
  class Writer;
  class Reader;

  explicit ChunkStore(ChunkStoreOptions options) : options_(std::move(options)) {}
  std::shared_ptr<Stream> Find(const StreamKey& key) const;
  absl::StatusOr<std::optional<Chunk>> Get(Stream& stream, int index);
  absl::StatusOr<std::string> Append(Stream& stream, Chunk chunk);
  void End(Stream& stream, bool complete);
  absl::Status Spool(Stream& stream, const Chunk& chunk, int64_t* offset);

  const ChunkStoreOptions options_;
  mutable std::mutex mutex_;
  // shared_ptr: a stream is held by the map, its writer and its readers, and outlives Free in them.
  std::map<StreamKey, std::shared_ptr<Stream>> streams_;
  int64_t memory_bytes_ = 0;
  int64_t spool_bytes_ = 0;
  bool shut_down_ = false;
};

}  // namespace gradq
