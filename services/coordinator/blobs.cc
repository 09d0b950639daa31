#include "services/coordinator/blobs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr std::string_view kTemporaryMark = ".tmp-";
// Left free so that the job store can still commit when texts and shards fill the disk.
constexpr int64_t kReserveBytes = int64_t{4} << 20;

absl::Status CheckDigest(std::string_view sha256) {
  if (IsSha256Hex(sha256)) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("not a SHA-256 in hex: '", sha256, "'"));
}

}  // namespace

BlobStore::Upload::Upload(std::string folder, std::string sha256, int64_t size,
                          std::string temporary, FileWriter writer)
    : folder_(std::move(folder)),
      sha256_(std::move(sha256)),
      size_(size),
      temporary_(std::move(temporary)),
      writer_(std::move(writer)) {}

BlobStore::Upload::Upload(Upload&& other) noexcept
    : folder_(std::move(other.folder_)),
      sha256_(std::move(other.sha256_)),
      size_(other.size_),
      temporary_(std::exchange(other.temporary_, {})),
      writer_(std::move(other.writer_)),
      digest_(std::move(other.digest_)) {}

BlobStore::Upload::~Upload() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status BlobStore::Upload::Append(std::string_view data) {
  if (static_cast<int64_t>(data.size()) > size_ - writer_.size()) {
    return absl::DataLossError(StrCat("more bytes than announced: ", sha256_, ", ",
                                      writer_.size() + static_cast<int64_t>(data.size()), " of ",
                                      size_));
  }
  digest_.Update(data);
  return writer_.Append(data);
}

absl::Status BlobStore::Upload::Commit() {
  if (!complete()) {
    return absl::DataLossError(
        StrCat("fewer bytes than announced: ", sha256_, ", ", writer_.size(), " of ", size_));
  }
  const std::string actual = digest_.FinishHex();
  if (actual != sha256_) {
    return absl::DataLossError(
        StrCat("bytes do not have the announced SHA-256: ", actual, " instead of ", sha256_));
  }
  GRADQ_RETURN_IF_ERROR(writer_.Finish());
  const std::string path = StrCat(folder_, "/", sha256_);
  if (rename(temporary_.c_str(), path.c_str()) != 0) {
    return ErrnoToStatus(errno, "cannot rename", path);
  }
  temporary_.clear();
  return SyncFolder(folder_);
}

absl::StatusOr<BlobStore> BlobStore::Open(std::string folder) {
  GRADQ_RETURN_IF_ERROR(MakeFolders(folder));
  GRADQ_ASSIGN_OR_RETURN(const auto readable, OpenLocalFolder(folder));
  GRADQ_ASSIGN_OR_RETURN(const auto entries, readable->List());
  for (const FolderEntry& entry : entries) {
    if (entry.name.find(kTemporaryMark) == std::string::npos) continue;
    unlink(StrCat(folder, "/", entry.name).c_str());
  }
  return BlobStore(std::move(folder));
}

std::string BlobStore::PathOf(std::string_view sha256) const {
  return StrCat(folder_, "/", sha256);
}

bool BlobStore::Has(std::string_view sha256) const {
  return IsSha256Hex(sha256) && PathExists(PathOf(sha256));
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> BlobStore::OpenBlob(
    std::string_view sha256) const {
  GRADQ_RETURN_IF_ERROR(CheckDigest(sha256));
  if (!Has(sha256)) return absl::NotFoundError(StrCat("no such blob: ", sha256));
  return OpenLocalFile(PathOf(sha256));
}

absl::StatusOr<std::string> BlobStore::Read(std::string_view sha256, int64_t limit) const {
  GRADQ_RETURN_IF_ERROR(CheckDigest(sha256));
  if (!Has(sha256)) return absl::NotFoundError(StrCat("no such blob: ", sha256));
  GRADQ_ASSIGN_OR_RETURN(std::string content, ReadFile(PathOf(sha256), limit));
  if (Sha256Hex(content) != sha256) {
    return absl::DataLossError(StrCat("file on disk is damaged: ", PathOf(sha256)));
  }
  return content;
}

absl::StatusOr<BlobStore::Upload> BlobStore::Begin(std::string_view sha256, int64_t size) const {
  GRADQ_RETURN_IF_ERROR(CheckDigest(sha256));
  if (size < 0) return absl::InvalidArgumentError(StrCat("negative size of a blob: ", size));
  GRADQ_RETURN_IF_ERROR(MakeFolders(folder_));
  GRADQ_ASSIGN_OR_RETURN(const int64_t free, FreeDiskBytes(folder_));
  if (size > free - kReserveBytes) {
    return absl::ResourceExhaustedError(StrCat("disk of the coordinator is full: ", folder_, ", ",
                                               size, " bytes needed, ", free, " free"));
  }
  static std::atomic<int64_t> counter{0};
  std::string temporary =
      StrCat(folder_, "/", sha256, kTemporaryMark, getpid(), "-", counter.fetch_add(1));
  GRADQ_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(temporary));
  return Upload(folder_, std::string(sha256), size, std::move(temporary), std::move(writer));
}

absl::StatusOr<BlobStore::Stored> BlobStore::Put(std::string_view content) const {
  Stored stored{Sha256Hex(content), false};
  if (Use(stored.sha256)) return stored;
  GRADQ_ASSIGN_OR_RETURN(Upload upload, Begin(stored.sha256, static_cast<int64_t>(content.size())));
  GRADQ_RETURN_IF_ERROR(upload.Append(content));
  GRADQ_RETURN_IF_ERROR(upload.Commit());
  stored.created = true;
  return stored;
}

absl::Status BlobStore::Remove(std::string_view sha256) const {
  GRADQ_RETURN_IF_ERROR(CheckDigest(sha256));
  if (unlink(PathOf(sha256).c_str()) != 0 && errno != ENOENT) {
    return ErrnoToStatus(errno, "cannot remove", PathOf(sha256));
  }
  return absl::OkStatus();
}

bool BlobStore::Use(std::string_view sha256) const {
  return Has(sha256) && utimensat(AT_FDCWD, PathOf(sha256).c_str(), nullptr, 0) == 0;
}

absl::Status BlobStore::RemoveUnused(const std::set<std::string, std::less<>>& keep,
                                     absl::Duration age) const {
  GRADQ_ASSIGN_OR_RETURN(const auto folder, OpenLocalFolder(folder_));
  GRADQ_ASSIGN_OR_RETURN(const auto entries, folder->List());
  const absl::Time oldest = absl::Now() - age;
  for (const FolderEntry& entry : entries) {
    if (!IsSha256Hex(entry.name) || keep.contains(entry.name)) continue;
    struct stat info;
    if (stat(PathOf(entry.name).c_str(), &info) != 0) continue;
    if (absl::TimeFromTimespec(info.st_mtim) < oldest) {
      GRADQ_RETURN_IF_ERROR(Remove(entry.name));
    }
  }
  return absl::OkStatus();
}

}  // namespace gradq
