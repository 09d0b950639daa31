#include "lib/format/weight_files.h"

#include <algorithm>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/safetensors.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kIndexLimit = kMaxSafetensorsHeader;

bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

// Tensor names by shard.
absl::StatusOr<std::map<std::string, std::vector<std::string>>> ReadIndex(
    const ReadableFolder& folder, std::span<const FolderEntry> entries) {
  const std::string path = StrCat(folder.path(), "/", kWeightIndexFile);
  const auto bad = [&](std::string_view fact) {
    return absl::InvalidArgumentError(StrCat(path, ": ", fact));
  };
  GRADQ_ASSIGN_OR_RETURN(const std::string text, folder.ReadAll(kWeightIndexFile, kIndexLimit));
  GRADQ_ASSIGN_OR_RETURN(const json index, ParseJsonObject(text, path));
  if (!index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty()) {
    return bad("weight_map missing or empty");
  }
  std::map<std::string, std::vector<std::string>> by_file;
  for (const auto& [tensor, value] : index["weight_map"].items()) {
    if (!value.is_string()) return bad(StrCat("weight_map entry is not a file name: ", tensor));
    const std::string& file = value.get_ref<const std::string&>();
    if (!IsPlainName(file)) return bad(StrCat("shard is a path outside the folder: ", file));
    by_file[file].push_back(tensor);
  }
  for (const auto& [file, tensors] : by_file) {
    if (std::none_of(entries.begin(), entries.end(),
                     [&](const FolderEntry& entry) { return entry.name == file; })) {
      return bad(StrCat("shard missing: ", file));
    }
  }
  return by_file;
}

}  // namespace

absl::Status WeightFiles::Load(const ReadableFolder& folder, std::span<const FolderEntry> entries) {
  const auto has = [&](std::string_view name) {
    return std::any_of(entries.begin(), entries.end(),
                       [&](const FolderEntry& entry) { return entry.name == name; });
  };
  folder_path_ = std::string(folder.path());
  if (has(kWeightIndexFile)) {
    GRADQ_ASSIGN_OR_RETURN(const auto by_file, ReadIndex(folder, entries));
    for (const auto& [file, tensors] : by_file) files_.push_back(file);
    return LoadFiles(folder, &by_file);
  }
  if (!has(kSingleWeightFile)) {
    return absl::FailedPreconditionError(
        StrCat("neither model.safetensors nor model.safetensors.index.json: ", folder.path()));
  }
  files_.emplace_back(kSingleWeightFile);
  return LoadFiles(folder, nullptr);
}

absl::Status WeightFiles::LoadFiles(const ReadableFolder& folder,
                                    const std::map<std::string, std::vector<std::string>>* wanted) {
  std::vector<std::pair<TensorInfo, Place>> found;
  Sha256 digest;
  for (size_t i = 0; i < files_.size(); ++i) {
    const std::string path = StrCat(folder_path_, "/", files_[i]);
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<RandomAccessFile> file, folder.Open(files_[i]));
    GRADQ_ASSIGN_OR_RETURN(SafetensorsHeader header, ReadSafetensorsHeader(*file, path));
    digest.Update(StrCat(files_[i], "\n", file->size(), "\n"));
    digest.Update(header.text);
    if (wanted == nullptr) {
      for (PlacedTensor& tensor : header.tensors)
        found.emplace_back(std::move(tensor.info), Place{i, tensor.offset});
    } else {
      for (const std::string& name : wanted->at(files_[i])) {
        const PlacedTensor* tensor = header.Find(name);
        if (tensor == nullptr)
          return absl::InvalidArgumentError(StrCat(path, ": tensor of the index missing: ", name));
        found.emplace_back(tensor->info, Place{i, tensor->offset});
      }
    }
    handles_.push_back(std::move(file));
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first.name < b.first.name; });
  for (auto& [info, place] : found) {
    tensors_.push_back(std::move(info));
    places_.push_back(place);
  }
  layout_digest_ = digest.FinishHex();
  return absl::OkStatus();
}

int64_t WeightFiles::IndexOf(std::string_view name) const {
  const auto it = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorInfo& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return it != tensors_.end() && it->name == name ? it - tensors_.begin() : -1;
}

absl::StatusOr<TensorInfo> WeightFiles::Find(std::string_view name) const {
  const int64_t i = IndexOf(name);
  if (i < 0) return absl::NotFoundError(StrCat("tensor missing: ", name, " in ", folder_path_));
  return tensors_[static_cast<size_t>(i)];
}

absl::Status WeightFiles::ReadRange(std::string_view name, int64_t offset,
                                    std::span<std::byte> out) const {
  const int64_t i = IndexOf(name);
  if (i < 0) return absl::NotFoundError(StrCat("tensor missing: ", name, " in ", folder_path_));
  const TensorInfo& tensor = tensors_[static_cast<size_t>(i)];
  const int64_t size = static_cast<int64_t>(out.size());
  if (offset < 0 || size > tensor.bytes || offset > tensor.bytes - size) {
    return absl::OutOfRangeError(StrCat("read past the end of a tensor: ", name, ", ", offset, "+",
                                        size, " of ", tensor.bytes));
  }
  const Place& place = places_[static_cast<size_t>(i)];
  return handles_[place.file]->Read(place.offset + offset, out);
}

const std::string& WeightFiles::FileOf(std::string_view name) const {
  const int64_t i = IndexOf(name);
  GRADQ_CHECK(i >= 0);
  return files_[places_[static_cast<size_t>(i)].file];
}

}  // namespace gradq
