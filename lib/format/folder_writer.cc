#include "lib/format/folder_writer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/safetensors.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kSliceBytes = int64_t{8} << 20;
constexpr int64_t kCopyLimit = int64_t{1} << 30;

// Copied byte for byte where the original has them.
constexpr std::string_view kCopiedFiles[] = {
    "added_tokens.json", "chat_template.jinja",     "chat_template.json", "generation_config.json",
    "merges.txt",        "special_tokens_map.json", "spiece.model",       "tokenizer.json",
    "tokenizer.model",   "tokenizer_config.json",   "vocab.json",         "vocab.txt",
};

// A file as it is written: its digest goes along.
class HashedFile {
 public:
  static absl::StatusOr<HashedFile> Create(const std::string& folder, std::string name) {
    GRADQ_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(StrCat(folder, "/", name)));
    return HashedFile(std::move(name), std::move(writer));
  }
  absl::Status Append(std::string_view bytes) {
    digest_.Update(bytes);
    return writer_.Append(bytes);
  }
  absl::StatusOr<FolderWriter::Record> Finish() {
    GRADQ_RETURN_IF_ERROR(writer_.Finish());
    return FolderWriter::Record{name_, writer_.size(), digest_.FinishHex()};
  }

 private:
  HashedFile(std::string name, FileWriter writer)
      : name_(std::move(name)), writer_(std::move(writer)) {}
  std::string name_;
  FileWriter writer_;
  Sha256 digest_;
};

std::string ShardFileName(size_t number, size_t count) {
  const auto five = [](size_t value) {
    const std::string digits = StrCat(value);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return StrCat("model-", five(number), "-of-", five(count), ".safetensors");
}

}  // namespace

int64_t WeightItem::bytes() const {
  int64_t sum = 0;
  for (const TensorInfo& info : infos) sum += info.bytes;
  return sum;
}

WeightItem CopiedTensor(const TensorSource& source, TensorInfo info) {
  const auto copy = [&source, info](AppendBytes append) -> absl::Status {
    std::string slice;
    for (int64_t offset = 0; offset < info.bytes; offset += kSliceBytes) {
      slice.resize(static_cast<size_t>(std::min(kSliceBytes, info.bytes - offset)));
      GRADQ_RETURN_IF_ERROR(
          source.ReadRange(info.name, offset, std::as_writable_bytes(std::span(slice))));
      GRADQ_RETURN_IF_ERROR(append(slice));
    }
    return absl::OkStatus();
  };
  return {.infos = {std::move(info)}, .write = copy};
}

absl::Status FolderWriter::WriteWeights(std::span<const WeightItem> items, int64_t file_limit) {
  std::vector<std::vector<const WeightItem*>> files(1);
  int64_t size = 0, total = 0;
  for (const WeightItem& item : items) {
    if (!files.back().empty() && size + item.bytes() > file_limit) {
      files.emplace_back();
      size = 0;
    }
    files.back().push_back(&item);
    size += item.bytes();
    total += item.bytes();
  }
  json weight_map = json::object();
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string name =
        files.size() == 1 ? std::string(kSingleWeightFile) : ShardFileName(i + 1, files.size());
    GRADQ_RETURN_IF_ERROR(WriteWeightFile(name, files[i]));
    for (const WeightItem* item : files[i]) {
      for (const TensorInfo& info : item->infos) weight_map[info.name] = name;
    }
  }
  if (files.size() == 1) return absl::OkStatus();
  const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  return WriteText(std::string(kWeightIndexFile), CanonicalJson(index, 2) + "\n");
}

absl::Status FolderWriter::WriteWeightFile(const std::string& name,
                                           std::span<const WeightItem* const> items) {
  std::vector<TensorInfo> infos;
  for (const WeightItem* item : items)
    infos.insert(infos.end(), item->infos.begin(), item->infos.end());
  GRADQ_ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(folder_, name));
  const auto append = [&](std::string_view bytes) { return file.Append(bytes); };
  GRADQ_RETURN_IF_ERROR(append(SafetensorsPrefix(infos, {{"format", "pt"}})));
  for (const WeightItem* item : items) GRADQ_RETURN_IF_ERROR(item->write(append));
  GRADQ_ASSIGN_OR_RETURN(Record record, file.Finish());
  files_.push_back(std::move(record));
  return absl::OkStatus();
}

absl::Status FolderWriter::WriteText(std::string name, std::string_view content) {
  GRADQ_ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(folder_, std::move(name)));
  GRADQ_RETURN_IF_ERROR(file.Append(content));
  GRADQ_ASSIGN_OR_RETURN(Record record, file.Finish());
  files_.push_back(std::move(record));
  return absl::OkStatus();
}

absl::Status FolderWriter::CopySmallFiles(const ReadableFolder& from) {
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, from.List());
  for (const FolderEntry& entry : entries) {
    if (std::find(std::begin(kCopiedFiles), std::end(kCopiedFiles), entry.name) ==
        std::end(kCopiedFiles))
      continue;
    GRADQ_ASSIGN_OR_RETURN(const std::string content, from.ReadAll(entry.name, kCopyLimit));
    GRADQ_RETURN_IF_ERROR(WriteText(entry.name, content));
  }
  return absl::OkStatus();
}

const std::vector<FolderWriter::Record>& FolderWriter::files() {
  std::sort(files_.begin(), files_.end(),
            [](const Record& a, const Record& b) { return a.name < b.name; });
  return files_;
}

}  // namespace gradq
