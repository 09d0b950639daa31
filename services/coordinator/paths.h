#pragma once

// Where a job's paths may lie: below a root after every symbolic link is resolved. No other place
// turns a client's text into a path.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

// A root folder as given by the operator, resolved once. Empty: nothing is allowed.
class PathRoot {
 public:
  // `flag` ("--model-root") goes into messages. NOT_FOUND when the folder is absent;
  // FAILED_PRECONDITION when it is not a folder.
  static absl::StatusOr<PathRoot> Open(std::string flag, const std::string& folder);

  // The real path of an existing file or folder, absolute or relative to the root. NOT_FOUND;
  // PERMISSION_DENIED when it lies outside of the root; INVALID_ARGUMENT for an empty path or one
  // with a NUL.
  absl::StatusOr<std::string> ResolveExisting(std::string_view path) const;
  // The same for a path whose last parts need not exist yet.
  absl::StatusOr<std::string> ResolveNew(std::string_view path) const;

 private:
  PathRoot(std::string flag, std::string root) : flag_(std::move(flag)), root_(std::move(root)) {}
  absl::StatusOr<std::string> Join(std::string_view path) const;
  absl::Status CheckInside(std::string_view asked, const std::string& resolved) const;

  std::string flag_;
  std::string root_;
};

// True when `path` is `folder` or lies below it; both resolved.
bool IsWithin(const std::string& path, const std::string& folder);

// The nearest ancestor (or the path itself) that exists.
std::string ExistingAncestor(const std::string& path);

}  // namespace gradq
