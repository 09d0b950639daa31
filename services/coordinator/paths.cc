#include "services/coordinator/paths.h"

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace fs = std::filesystem;

bool IsWithin(const std::string& path, const std::string& folder) {
  if (folder == "/") return path.starts_with('/');
  return path == folder || (path.starts_with(folder) && path[folder.size()] == '/');
}

std::string ExistingAncestor(const std::string& path) {
  fs::path current(path);
  std::error_code error;
  while (!fs::exists(current, error) && current.has_parent_path() &&
         current != current.parent_path()) {
    current = current.parent_path();
  }
  return current.string();
}

absl::StatusOr<PathRoot> PathRoot::Open(std::string flag, const std::string& folder) {
  if (folder.empty()) return PathRoot(std::move(flag), "");
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  if (error)
    return ErrnoToStatus(error.value(), StrCat("cannot open the folder of ", flag), folder);
  if (!fs::is_directory(root, error)) {
    return absl::FailedPreconditionError(StrCat(flag, " is not a folder: ", folder));
  }
  return PathRoot(std::move(flag), root.string());
}

absl::StatusOr<std::string> PathRoot::Join(std::string_view path) const {
  if (path.empty()) return absl::InvalidArgumentError("path is empty");
  if (path.find('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError("path holds a NUL character");
  }
  if (root_.empty()) {
    return absl::PermissionDeniedError(
        StrCat("the coordinator was started without ", flag_, ": ", path));
  }
  return path.starts_with('/') ? std::string(path) : StrCat(root_, "/", path);
}

absl::Status PathRoot::CheckInside(std::string_view asked, const std::string& resolved) const {
  if (IsWithin(resolved, root_)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      StrCat("path lies outside of the coordinator's ", flag_, ": ", asked, ", ", root_));
}

absl::StatusOr<std::string> PathRoot::ResolveNew(std::string_view path) const {
  GRADQ_ASSIGN_OR_RETURN(const std::string joined, Join(path));
  std::error_code error;
  std::string resolved = fs::weakly_canonical(joined, error).string();
  if (error) return ErrnoToStatus(error.value(), "cannot resolve", joined);
  while (resolved.size() > 1 && resolved.back() == '/') resolved.pop_back();
  GRADQ_RETURN_IF_ERROR(CheckInside(path, resolved));
  return resolved;
}

absl::StatusOr<std::string> PathRoot::ResolveExisting(std::string_view path) const {
  // Inside or not is decided first: what lies elsewhere is not even told to exist.
  GRADQ_ASSIGN_OR_RETURN(std::string resolved, ResolveNew(path));
  std::error_code error;
  if (!fs::exists(resolved, error)) {
    return ErrnoToStatus(error ? error.value() : ENOENT, "cannot open", resolved);
  }
  return resolved;
}

}  // namespace gradq
