#pragma once

// Where the models of clients may lie: below one folder after every symbolic link is resolved. No
// other place of gradq-inference turns a client's text into a path. Thread-safe.

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace gradq {

class ModelRoot {
 public:
  // NOT_FOUND, FAILED_PRECONDITION (not a folder).
  static absl::StatusOr<ModelRoot> Open(const std::string& folder);

  // The real path of an existing model folder given as absolute path or relative to the root.
  // INVALID_ARGUMENT (empty, NUL); PERMISSION_DENIED when it lies outside of the root, whether it
  // exists or not; NOT_FOUND.
  absl::StatusOr<std::string> Resolve(std::string_view path) const;

 private:
  explicit ModelRoot(std::string root) : root_(std::move(root)) {}
  std::string root_;
};

}  // namespace gradq
