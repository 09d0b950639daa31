#pragma once

// One process per data folder: an exclusive flock that ends with the process, however it ends.

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace gradq {

class FolderLock {
 public:
  // FAILED_PRECONDITION naming the folder when another process holds it.
  static absl::StatusOr<FolderLock> Take(const std::string& folder);
  FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FolderLock& operator=(FolderLock&&) = delete;
  ~FolderLock();

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace gradq
