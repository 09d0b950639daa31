#pragma once

// The safetensors files of one folder as one TensorSource: a single model.safetensors, or the
// shards that model.safetensors.index.json names. Shared by Checkpoint and Artifact. Thread-safe
// after Load.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "lib/base/files.h"
#include "lib/format/tensor_source.h"

namespace gradq {

inline constexpr std::string_view kSingleWeightFile = "model.safetensors";
inline constexpr std::string_view kWeightIndexFile = "model.safetensors.index.json";
inline constexpr std::string_view kGradqFile = "gradq.json";
inline constexpr std::string_view kQuantMethod = "gradq";

class WeightFiles : public TensorSource {
 public:
  // `entries`: folder.List(). The index goes first where both exist. FAILED_PRECONDITION without
  // either; INVALID_ARGUMENT naming the file for an index that is not one, names a missing shard, a
  // path outside the folder or a tensor its shard lacks, and for bad headers. `folder` must outlive
  // this.
  absl::Status Load(const ReadableFolder& folder, std::span<const FolderEntry> entries);

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  absl::StatusOr<TensorInfo> Find(std::string_view name) const override;
  absl::Status ReadRange(std::string_view name, int64_t offset,
                         std::span<std::byte> out) const override;

  // In order of name.
  const std::vector<std::string>& files() const { return files_; }
  // The file that holds a tensor; it must be there.
  const std::string& FileOf(std::string_view name) const;
  // SHA-256 over names, sizes and headers of the files.
  const std::string& layout_digest() const { return layout_digest_; }

 private:
  struct Place {
    size_t file = 0;
    int64_t offset = 0;
  };

  absl::Status LoadFiles(const ReadableFolder& folder,
                         const std::map<std::string, std::vector<std::string>>* wanted);
  // Index into tensors_, or -1.
  int64_t IndexOf(std::string_view name) const;

  std::string folder_path_;
  std::vector<std::string> files_;
  std::vector<std::unique_ptr<RandomAccessFile>> handles_;
  std::vector<TensorInfo> tensors_;  // sorted by name
  std::vector<Place> places_;        // of tensors_[i]
  std::string layout_digest_;
};

}  // namespace gradq
