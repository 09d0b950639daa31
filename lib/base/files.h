#pragma once

// Files with status errors that name the path. A folder may be local (LocalFolder) or behind an RPC
// (services/worker): readers of checkpoints and artifacts see only ReadableFolder. Thread-safe
// unless said otherwise.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

// A file that can be read at any offset, by several threads at once.
class RandomAccessFile {
 public:
  virtual ~RandomAccessFile() = default;
  virtual int64_t size() const = 0;
  // Fills `out` from `offset`. OUT_OF_RANGE when the file is shorter; UNAVAILABLE or DATA_LOSS on a
  // failed read.
  virtual absl::Status Read(int64_t offset, std::span<std::byte> out) const = 0;
};

struct FolderEntry {
  std::string name;  // no slashes
  int64_t size = 0;
};

class ReadableFolder {
 public:
  virtual ~ReadableFolder() = default;
  // For messages: the path or URL.
  virtual std::string_view path() const = 0;
  // Regular files, sorted by name.
  virtual absl::StatusOr<std::vector<FolderEntry>> List() const = 0;
  // NOT_FOUND, PERMISSION_DENIED. INVALID_ARGUMENT when `name` is not a plain file name.
  virtual absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(std::string_view name) const = 0;

  // A whole file; RESOURCE_EXHAUSTED when it is longer than `limit` bytes.
  absl::StatusOr<std::string> ReadAll(std::string_view name, int64_t limit) const;
};

// NOT_FOUND when `path` is absent, FAILED_PRECONDITION when it is not a folder.
absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenLocalFolder(std::string path);
absl::StatusOr<std::unique_ptr<RandomAccessFile>> OpenLocalFile(const std::string& path);
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t limit = int64_t{1} << 32);

// Appends to a new file; created with O_EXCL unless `replace`. Not thread-safe. The destructor
// closes without fsync.
class FileWriter {
 public:
  static absl::StatusOr<FileWriter> Create(std::string path, bool replace = false);
  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&& other) noexcept;
  ~FileWriter();

  // RESOURCE_EXHAUSTED when the disk is full.
  absl::Status Append(std::span<const std::byte> data);
  absl::Status Append(std::string_view data);
  // fsync and close.
  absl::Status Finish();
  int64_t size() const { return size_; }

 private:
  FileWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

// Writes `path` so that readers see the old or the new content, never a part: temporary name,
// fsync, rename, fsync of the folder.
absl::Status WriteFileAtomically(const std::string& path, std::string_view content);

// A folder that appears at `path` complete or not at all. Files are made below staging(); Commit
// fsyncs them (folders in it too) and renames once. Without Commit the destructor removes the
// staging folder; a process that dies leaves it, under a name that nobody reads. Not thread-safe.
class AtomicFolder {
 public:
  // ALREADY_EXISTS when `path` stands and `replace` is false. Makes the folders above `path`.
  static absl::StatusOr<AtomicFolder> Create(std::string path, bool replace);
  AtomicFolder(AtomicFolder&& other) noexcept;
  AtomicFolder& operator=(AtomicFolder&&) = delete;
  ~AtomicFolder();

  const std::string& staging() const { return staging_; }
  // Once. With `replace`, an existing folder is exchanged by renameat2(RENAME_EXCHANGE) and then
  // removed; without, ALREADY_EXISTS when one appeared since Create, which is kept. After an error
  // nothing is at `path` that was not there, unless only the last fsync failed.
  absl::Status Commit();

 private:
  AtomicFolder(std::string path, std::string staging, bool replace)
      : path_(std::move(path)), staging_(std::move(staging)), replace_(replace) {}
  std::string path_;
  std::string staging_;
  bool replace_ = false;
};

absl::Status MakeFolders(const std::string& path);
absl::Status RemoveRecursively(const std::string& path);
bool PathExists(const std::string& path);
absl::Status SyncFolder(const std::string& path);
absl::StatusOr<int64_t> FreeDiskBytes(const std::string& path);

// errno as a status: ENOENT NOT_FOUND, EACCES PERMISSION_DENIED, EEXIST ALREADY_EXISTS,
// ENOTDIR/EISDIR/ENOTEMPTY FAILED_PRECONDITION, EINVAL/ELOOP/ENAMETOOLONG INVALID_ARGUMENT,
// ENOSPC/EDQUOT RESOURCE_EXHAUSTED, else UNAVAILABLE. Message: "<action>: <path>: <strerror>".
absl::Status ErrnoToStatus(int error, std::string_view action, std::string_view path);

}  // namespace gradq
