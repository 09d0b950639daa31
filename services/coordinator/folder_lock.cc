#include "services/coordinator/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "lib/base/files.h"
#include "lib/base/strings.h"

namespace gradq {

absl::StatusOr<FolderLock> FolderLock::Take(const std::string& folder) {
  const std::string path = StrCat(folder, "/lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoToStatus(errno, "cannot open", path);
  FolderLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoToStatus(errno, "cannot lock", path);
    return absl::FailedPreconditionError(
        StrCat("data folder is in use by another coordinator: ", folder));
  }
  return lock;
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace gradq
