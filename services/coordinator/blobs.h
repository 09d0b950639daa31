#pragma once

// Files named by the SHA-256 of their content: uploaded texts, token windows, and the durable
// shards of a job. A file stands complete or not at all: temporary name, digest check, fsync,
// rename, fsync of the folder. Thread-safe; an Upload belongs to one caller.

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/base/digest.h"
#include "lib/base/files.h"

namespace gradq {

class BlobStore {
 public:
  // A file on its way in. Dropping it without Commit removes what was written.
  class Upload {
   public:
    Upload(Upload&& other) noexcept;
    Upload& operator=(Upload&&) = delete;
    ~Upload();

    // DATA_LOSS beyond the announced size; RESOURCE_EXHAUSTED when the disk is full.
    absl::Status Append(std::string_view data);
    bool complete() const { return writer_.size() == size_; }
    // Verifies size and digest (DATA_LOSS), then makes the blob durable.
    absl::Status Commit();

   private:
    friend class BlobStore;
    Upload(std::string folder, std::string sha256, int64_t size, std::string temporary,
           FileWriter writer);
    std::string folder_;
    std::string sha256_;
    int64_t size_;
    std::string temporary_;  // empty once committed or moved from
    FileWriter writer_;
    Sha256 digest_;
  };

  // Creates the folder; removes what an earlier process left half-written.
  static absl::StatusOr<BlobStore> Open(std::string folder);
  // Does not touch the disk; the folder must have been opened once by this process.
  static BlobStore At(std::string folder) { return BlobStore(std::move(folder)); }

  bool Has(std::string_view sha256) const;
  // INVALID_ARGUMENT: not a digest. NOT_FOUND.
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> OpenBlob(std::string_view sha256) const;
  // The content, verified (DATA_LOSS naming the file). RESOURCE_EXHAUSTED above `limit` bytes.
  absl::StatusOr<std::string> Read(std::string_view sha256, int64_t limit) const;
  // INVALID_ARGUMENT: not a digest, negative size. RESOURCE_EXHAUSTED when the disk has no room for
  // `size` bytes.
  absl::StatusOr<Upload> Begin(std::string_view sha256, int64_t size) const;
  struct Stored {
    std::string sha256;
    bool created = false;  // false: it was there before
  };
  absl::StatusOr<Stored> Put(std::string_view content) const;
  absl::Status Remove(std::string_view sha256) const;
  // Has, and counts as a use: RemoveUnused spares it for its whole age again.
  bool Use(std::string_view sha256) const;
  // Removes blobs that are not in `keep` and were neither written nor used for `age`.
  absl::Status RemoveUnused(const std::set<std::string, std::less<>>& keep,
                            absl::Duration age) const;

 private:
  explicit BlobStore(std::string folder) : folder_(std::move(folder)) {}
  std::string PathOf(std::string_view sha256) const;
  std::string folder_;
};

}  // namespace gradq
