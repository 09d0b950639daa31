#include "services/inference_worker/model_root.h"

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "lib/base/files.h"
#include "lib/base/strings.h"

namespace gradq {
namespace fs = std::filesystem;

absl::StatusOr<ModelRoot> ModelRoot::Open(const std::string& folder) {
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  if (error) return ErrnoToStatus(error.value(), "cannot open the folder of --model-root", folder);
  if (!fs::is_directory(root, error)) {
    return absl::FailedPreconditionError(StrCat("--model-root is not a folder: ", folder));
  }
  return ModelRoot(root.string());
}

absl::StatusOr<std::string> ModelRoot::Resolve(std::string_view path) const {
  if (path.empty()) return absl::InvalidArgumentError("model path is empty");
  if (path.find('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError("model path holds a NUL character");
  }
  const fs::path joined = fs::path(root_) / fs::path(path);  // an absolute path replaces the root
  std::error_code error;
  std::string resolved = fs::weakly_canonical(joined, error).string();
  if (error) return ErrnoToStatus(error.value(), "cannot resolve model path", joined.string());
  while (resolved.size() > 1 && resolved.back() == '/') resolved.pop_back();
  const bool inside = root_ == "/" || resolved == root_ ||
                      (resolved.starts_with(root_) && resolved[root_.size()] == '/');
  if (!inside) {
    return absl::PermissionDeniedError(
        StrCat("model path lies outside of --model-root: ", path, ", ", root_));
  }
  if (!fs::exists(resolved, error)) {
    return ErrnoToStatus(error ? error.value() : ENOENT, "cannot open model folder", resolved);
  }
  return resolved;
}

}  // namespace gradq
