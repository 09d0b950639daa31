#include "lib/base/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

namespace fs = std::filesystem;

class LocalFile : public RandomAccessFile {
 public:
  LocalFile(std::string path, int fd, int64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  ~LocalFile() override { close(fd_); }
  int64_t size() const override { return size_; }

  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    if (offset < 0 || offset > size_ || static_cast<int64_t>(out.size()) > size_ - offset) {
      return absl::OutOfRangeError(StrCat("read past the end of a file: ", path_, ", ", offset, "+",
                                          out.size(), " of ", size_));
    }
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t n =
          pread(fd_, out.data() + done, out.size() - done, offset + static_cast<int64_t>(done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoToStatus(errno, "cannot read", path_);
      if (n == 0)
        return absl::DataLossError(StrCat("file became shorter while it was read: ", path_));
      done += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

 private:
  std::string path_;
  int fd_;
  int64_t size_;
};

class LocalFolder : public ReadableFolder {
 public:
  explicit LocalFolder(std::string path) : path_(std::move(path)) {}
  std::string_view path() const override { return path_; }

  absl::StatusOr<std::vector<FolderEntry>> List() const override {
    std::vector<FolderEntry> entries;
    std::error_code error;
    for (fs::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
      // What cannot be looked at (a dangling link, a file just removed) is not a file that could be
      // opened.
      std::error_code gone;
      if (!it->is_regular_file(gone) || gone) continue;
      const auto size = static_cast<int64_t>(it->file_size(gone));
      if (!gone) entries.push_back({it->path().filename().string(), size});
    }
    if (error) return ErrnoToStatus(error.value(), "cannot list folder", path_);
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    return entries;
  }

  absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(std::string_view name) const override {
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
        name.find('\0') != std::string_view::npos) {
      return absl::InvalidArgumentError(StrCat("not a plain file name: ", name));
    }
    return OpenLocalFile(StrCat(path_, "/", name));
  }

 private:
  std::string path_;
};

// Random, since a process id returns: in a container it is 1 again after every restart, beside what
// the crash left behind.
std::string UniqueSuffix() {
  static std::atomic<uint64_t> counter{std::random_device{}()};
  return StrCat(".tmp-", getpid(), "-", absl::Hex(counter.fetch_add(1) & 0xffffffff));
}

std::string ParentOf(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// fsyncs every file and folder below `folder`, and `folder`.
absl::Status SyncTree(const std::string& folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code type_error;
    const fs::file_type type = it->symlink_status(type_error).type();
    if (type != fs::file_type::regular && type != fs::file_type::directory) continue;
    const std::string path = it->path().string();
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ErrnoToStatus(errno, "cannot open", path);
    const int sync_error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    if (sync_error != 0) return ErrnoToStatus(sync_error, "cannot sync", path);
  }
  if (error) return ErrnoToStatus(error.value(), "cannot list folder", folder);
  return SyncFolder(folder);
}

int RenameAt2(const std::string& from, const std::string& to, unsigned flags) {
  const long result = syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
  return result == 0 ? 0 : errno;
}

// True for the answers of a file system (NFS, some FUSE) or kernel without the flags of renameat2.
bool LacksRenameFlags(int error) {
  return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
}

// ALREADY_EXISTS when something appeared at `to` meanwhile; it is kept.
absl::Status RenameToNew(const std::string& from, const std::string& to) {
  int error = RenameAt2(from, to, RENAME_NOREPLACE);
  if (LacksRenameFlags(error)) {
    if (PathExists(to)) return ErrnoToStatus(EEXIST, "cannot rename into place", to);
    error = rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
  }
  if (error != 0) return ErrnoToStatus(error, "cannot rename into place", to);
  return absl::OkStatus();
}

// Swaps the two, so that there is no moment without `to`. Without RENAME_EXCHANGE there is one,
// between two renames.
absl::Status Exchange(const std::string& from, const std::string& to) {
  const int error = RenameAt2(from, to, RENAME_EXCHANGE);
  if (error == 0) return absl::OkStatus();
  if (!LacksRenameFlags(error)) return ErrnoToStatus(error, "cannot rename into place", to);
  const std::string old = to + UniqueSuffix();
  if (rename(to.c_str(), old.c_str()) != 0) return ErrnoToStatus(errno, "cannot rename away", to);
  if (rename(from.c_str(), to.c_str()) != 0) {
    const int failed = errno;
    if (rename(old.c_str(), to.c_str()) != 0) {
      return absl::DataLossError(StrCat("cannot rename back, the old output is at: ", old));
    }
    return ErrnoToStatus(failed, "cannot rename into place", to);
  }
  if (rename(old.c_str(), from.c_str()) != 0) return ErrnoToStatus(errno, "cannot rename", old);
  return absl::OkStatus();
}

}  // namespace

absl::Status ErrnoToStatus(int error, std::string_view action, std::string_view path) {
  const std::string message =
      StrCat(action, ": ", path, ": ", std::generic_category().message(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    case ENOTDIR:
    case EISDIR:
    case ENOTEMPTY:
      return absl::FailedPreconditionError(message);
    case ENAMETOOLONG:
    case ELOOP:
    case EINVAL:
      return absl::InvalidArgumentError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::string> ReadableFolder::ReadAll(std::string_view name, int64_t limit) const {
  GRADQ_ASSIGN_OR_RETURN(const auto file, Open(name));
  if (file->size() > limit) {
    return absl::ResourceExhaustedError(
        StrCat("file too large: ", path(), "/", name, ", ", file->size(), " bytes, limit ", limit));
  }
  std::string content(static_cast<size_t>(file->size()), '\0');
  GRADQ_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(content))));
  return content;
}

absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenLocalFolder(std::string path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoToStatus(errno, "cannot open folder", path);
  if (!S_ISDIR(info.st_mode)) return absl::FailedPreconditionError(StrCat("not a folder: ", path));
  return std::make_unique<LocalFolder>(std::move(path));
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> OpenLocalFile(const std::string& path) {
  // O_NONBLOCK: a FIFO without a writer must be refused and not waited for. Regular files ignore
  // it.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoToStatus(errno, "cannot open", path);
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::FailedPreconditionError(StrCat("not a regular file: ", path));
  }
  return std::make_unique<LocalFile>(path, fd, info.st_size);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t limit) {
  GRADQ_ASSIGN_OR_RETURN(const auto file, OpenLocalFile(path));
  if (file->size() > limit) {
    return absl::ResourceExhaustedError(
        StrCat("file too large: ", path, ", ", file->size(), " bytes, limit ", limit));
  }
  std::string content(static_cast<size_t>(file->size()), '\0');
  GRADQ_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(content))));
  return content;
}

absl::StatusOr<FileWriter> FileWriter::Create(std::string path, bool replace) {
  const int fd =
      open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | (replace ? O_TRUNC : O_EXCL), 0644);
  if (fd < 0) return ErrnoToStatus(errno, "cannot create", path);
  return FileWriter(std::move(path), fd);
}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

FileWriter& FileWriter::operator=(FileWriter&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
    size_ = other.size_;
  }
  return *this;
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) close(fd_);
}

absl::Status FileWriter::Append(std::span<const std::byte> data) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = write(fd_, data.data() + done, data.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, "cannot write", path_);
    done += static_cast<size_t>(n);
  }
  size_ += static_cast<int64_t>(data.size());
  return absl::OkStatus();
}

absl::Status FileWriter::Append(std::string_view data) {
  return Append(std::as_bytes(std::span(data)));
}

absl::Status FileWriter::Finish() {
  if (fsync(fd_) != 0) return ErrnoToStatus(errno, "cannot sync", path_);
  if (close(std::exchange(fd_, -1)) != 0) return ErrnoToStatus(errno, "cannot close", path_);
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view content) {
  const std::string temporary = path + UniqueSuffix();
  absl::Status status = [&] {
    GRADQ_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(temporary));
    GRADQ_RETURN_IF_ERROR(writer.Append(content));
    GRADQ_RETURN_IF_ERROR(writer.Finish());
    if (rename(temporary.c_str(), path.c_str()) != 0)
      return ErrnoToStatus(errno, "cannot rename", path);
    return SyncFolder(ParentOf(path));
  }();
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

absl::StatusOr<AtomicFolder> AtomicFolder::Create(std::string path, bool replace) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty()) return absl::InvalidArgumentError("output path is empty");
  if (!replace && PathExists(path))
    return absl::AlreadyExistsError(StrCat("output exists: ", path));
  GRADQ_RETURN_IF_ERROR(MakeFolders(ParentOf(path)));
  std::string staging = path + UniqueSuffix();
  if (mkdir(staging.c_str(), 0755) != 0)
    return ErrnoToStatus(errno, "cannot create folder", staging);
  return AtomicFolder(std::move(path), std::move(staging), replace);
}

AtomicFolder::AtomicFolder(AtomicFolder&& other) noexcept
    : path_(std::move(other.path_)),
      staging_(std::exchange(other.staging_, {})),
      replace_(other.replace_) {}

AtomicFolder::~AtomicFolder() {
  if (!staging_.empty()) RemoveRecursively(staging_).IgnoreError();
}

absl::Status AtomicFolder::Commit() {
  GRADQ_RETURN_IF_ERROR(SyncTree(staging_));
  const bool exchange = replace_ && PathExists(path_);
  GRADQ_RETURN_IF_ERROR(exchange ? Exchange(staging_, path_) : RenameToNew(staging_, path_));
  // From here `path_` is the new folder, and staging_, if anything, the old one.
  const std::string leftover = std::exchange(staging_, {});
  GRADQ_RETURN_IF_ERROR(SyncFolder(ParentOf(path_)));
  if (exchange) {
    const absl::Status removed = RemoveRecursively(leftover);
    if (!removed.ok()) LogWarning("the replaced output is left over: ", removed.message());
  }
  return absl::OkStatus();
}

absl::Status MakeFolders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return ErrnoToStatus(error.value(), "cannot create folder", path);
  return absl::OkStatus();
}

absl::Status RemoveRecursively(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrnoToStatus(error.value(), "cannot remove", path);
  return absl::OkStatus();
}

bool PathExists(const std::string& path) {
  struct stat info;
  return lstat(path.c_str(), &info) == 0;
}

absl::Status SyncFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoToStatus(errno, "cannot open folder", path);
  const int error = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  if (error != 0) return ErrnoToStatus(error, "cannot sync folder", path);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> FreeDiskBytes(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0)
    return ErrnoToStatus(errno, "cannot stat file system", path);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

}  // namespace gradq
