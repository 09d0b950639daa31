#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/artifact.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/quantization_config.h"
#include "lib/format/safetensors.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kSliceBytes = int64_t{8} << 20;

// Copied byte for byte where the original has them.
constexpr std::string_view kCopiedFiles[] = {
    "added_tokens.json", "chat_template.jinja",     "chat_template.json", "generation_config.json",
    "merges.txt",        "special_tokens_map.json", "spiece.model",       "tokenizer.json",
    "tokenizer.model",   "tokenizer_config.json",   "vocab.json",         "vocab.txt",
};

// A file of the artifact as it is written: its digest goes along.
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
  struct Record {
    std::string name;
    int64_t size = 0;
    std::string sha256;
  };
  absl::StatusOr<Record> Finish() {
    GRADQ_RETURN_IF_ERROR(writer_.Finish());
    return Record{name_, writer_.size(), digest_.FinishHex()};
  }

 private:
  HashedFile(std::string name, FileWriter writer)
      : name_(std::move(name)), writer_(std::move(writer)) {}
  std::string name_;
  FileWriter writer_;
  Sha256 digest_;
};

// What lies together in a weight file: one tensor of the original, or all tensors of one linear.
struct Item {
  std::string name;  // of the tensor or the linear
  bool linear = false;
  std::vector<TensorInfo> infos;
  std::string sha256;  // of a linear's shard

  int64_t bytes() const {
    int64_t sum = 0;
    for (const TensorInfo& info : infos) sum += info.bytes;
    return sum;
  }
};

class Writer {
 public:
  Writer(const ArtifactInputs& inputs, const std::string& folder)
      : inputs_(inputs), folder_(folder) {}

  absl::StatusOr<ArtifactSummary> Write() {
    GRADQ_ASSIGN_OR_RETURN(const json recipe, ParseJsonObject(inputs_.recipe_json, "recipe"));
    GRADQ_RETURN_IF_ERROR(CollectItems());
    GRADQ_RETURN_IF_ERROR(WriteWeights());
    GRADQ_ASSIGN_OR_RETURN(const std::string config,
                           InsertQuantizationConfig(inputs_.original->config_json(),
                                                    MakeQuantizationConfig(announced_)));
    GRADQ_RETURN_IF_ERROR(WriteText(std::string(kConfigFile), config));
    GRADQ_RETURN_IF_ERROR(CopyFiles());
    GRADQ_RETURN_IF_ERROR(WriteText(std::string(kGradqFile), GradqJson(recipe)));
    return Summary();
  }

 private:
  // First pass over the shards: checks each, keeps its record and the sizes of its tensors.
  absl::Status CollectItems() {
    const ModelGeometry& geometry = inputs_.original->geometry();
    std::map<std::string, LinearShape> linears;
    for (LinearShape& linear : LinearsOf(geometry))
      linears.emplace(linear.name + ".weight", std::move(linear));
    for (const TensorShape& tensor : TensorsOf(geometry)) {
      const auto linear = linears.find(tensor.name);
      if (linear == linears.end()) {
        GRADQ_ASSIGN_OR_RETURN(TensorInfo info, inputs_.original->Find(tensor.name));
        items_.push_back(
            {.name = tensor.name, .linear = false, .infos = {std::move(info)}, .sha256 = {}});
      } else {
        GRADQ_RETURN_IF_ERROR(CollectLinear(linear->second));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CollectLinear(const LinearShape& shape) {
    GRADQ_ASSIGN_OR_RETURN(const std::string bytes, inputs_.read_shard(shape.name));
    GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, ParseShard(bytes));
    if (linear.name != shape.name || linear.out_features != shape.out_features ||
        linear.in_features != shape.in_features) {
      return absl::InvalidArgumentError(
          StrCat("shard contradicts the model's geometry: ", linear.name, ", ", linear.out_features,
                 " × ", linear.in_features, ", expected ", shape.name, ", ", shape.out_features,
                 " × ", shape.in_features));
    }
    const std::string sha256 = Sha256Hex(bytes);
    json record = LinearRecordJson(linear);
    record["sha256"] = sha256;
    record["average_bits"] = linear.average_bits();
    record["outlier_fraction"] =
        linear.outliers.empty() ? json(0) : json(linear.outlier_fraction());
    records_.push_back(std::move(record));
    items_.push_back({.name = linear.name,
                      .linear = true,
                      .infos = LinearTensorInfos(linear),
                      .sha256 = sha256});

    announced_.push_back({.encoding = linear.encoding,
                          .bits = linear.bits,
                          .group_size = linear.group_size,
                          .in_features = linear.in_features,
                          .outliers = !linear.outliers.empty()});
    stored_bits_ += linear.average_bits() * static_cast<double>(linear.weights());
    weights_ += linear.weights();
    const std::optional<double>& increase = linear.record.predicted_loss_increase;
    if (!increase) increase_known_ = false;
    increase_ += increase.value_or(0);
    return absl::OkStatus();
  }

  absl::Status WriteWeights() {
    std::vector<std::vector<const Item*>> files(1);
    int64_t size = 0, total = 0;
    for (const Item& item : items_) {
      if (!files.back().empty() && size + item.bytes() > inputs_.file_limit) {
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
      for (const Item* item : files[i]) {
        for (const TensorInfo& info : item->infos) weight_map[info.name] = name;
      }
    }
    if (files.size() == 1) return absl::OkStatus();
    const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    return WriteText(std::string(kWeightIndexFile), CanonicalJson(index, 2) + "\n");
  }

  static std::string ShardFileName(size_t number, size_t count) {
    const auto five = [](size_t value) {
      const std::string digits = StrCat(value);
      return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
    };
    return StrCat("model-", five(number), "-of-", five(count), ".safetensors");
  }

  absl::Status WriteWeightFile(const std::string& name, const std::vector<const Item*>& items) {
    std::vector<TensorInfo> infos;
    for (const Item* item : items)
      infos.insert(infos.end(), item->infos.begin(), item->infos.end());
    GRADQ_ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(folder_, name));
    GRADQ_RETURN_IF_ERROR(file.Append(SafetensorsPrefix(infos, {{"format", "pt"}})));
    for (const Item* item : items) {
      GRADQ_RETURN_IF_ERROR(item->linear ? AppendLinear(*item, &file)
                                         : AppendTensor(item->infos.front(), &file));
    }
    return Keep(file.Finish());
  }

  absl::Status AppendLinear(const Item& item, HashedFile* file) {
    GRADQ_ASSIGN_OR_RETURN(const std::string bytes, inputs_.read_shard(item.name));
    if (Sha256Hex(bytes) != item.sha256)
      return absl::DataLossError(
          StrCat("shard changed while the artifact was written: ", item.name));
    GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, ParseShard(bytes));
    return file->Append(LinearTensorBytes(linear));
  }

  absl::Status AppendTensor(const TensorInfo& info, HashedFile* file) {
    std::string slice;
    for (int64_t offset = 0; offset < info.bytes; offset += kSliceBytes) {
      slice.resize(static_cast<size_t>(std::min(kSliceBytes, info.bytes - offset)));
      GRADQ_RETURN_IF_ERROR(
          inputs_.original->ReadRange(info.name, offset, std::as_writable_bytes(std::span(slice))));
      GRADQ_RETURN_IF_ERROR(file->Append(slice));
    }
    return absl::OkStatus();
  }

  absl::Status CopyFiles() {
    const ReadableFolder& folder = inputs_.original->folder();
    GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, folder.List());
    for (const FolderEntry& entry : entries) {
      if (std::find(std::begin(kCopiedFiles), std::end(kCopiedFiles), entry.name) ==
          std::end(kCopiedFiles))
        continue;
      GRADQ_ASSIGN_OR_RETURN(const std::string content,
                             folder.ReadAll(entry.name, int64_t{1} << 30));
      GRADQ_RETURN_IF_ERROR(WriteText(entry.name, content));
    }
    return absl::OkStatus();
  }

  absl::Status WriteText(std::string name, std::string_view content) {
    GRADQ_ASSIGN_OR_RETURN(HashedFile file, HashedFile::Create(folder_, std::move(name)));
    GRADQ_RETURN_IF_ERROR(file.Append(content));
    return Keep(file.Finish());
  }

  absl::Status Keep(absl::StatusOr<HashedFile::Record> record) {
    if (!record.ok()) return record.status();
    files_.push_back(*std::move(record));
    return absl::OkStatus();
  }

  std::string GradqJson(const json& recipe) {
    json files = json::array();
    SortFiles();
    for (const HashedFile::Record& file : files_)
      files.push_back({{"name", file.name}, {"size", file.size}, {"sha256", file.sha256}});
    const json root = {
        {"format_version", VersionFor(announced_)},
        {"recipe", recipe},
        {"numerics_class", inputs_.numerics_class},
        {"linears", records_},
        {"average_bits", stored_bits_ / static_cast<double>(weights_)},
        {"predicted_loss_increase", increase_known_ ? json(increase_) : json(nullptr)},
        {"files", files}};
    return CanonicalJson(root, 1) + "\n";
  }

  void SortFiles() {
    std::sort(files_.begin(), files_.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
  }

  ArtifactSummary Summary() {
    ArtifactSummary summary{
        .bytes = 0, .average_bits = stored_bits_ / static_cast<double>(weights_), .digest = {}};
    SortFiles();
    Sha256 digest;
    for (const HashedFile::Record& file : files_) {
      summary.bytes += file.size;
      digest.Update(StrCat(file.name, " ", file.size, " ", file.sha256, "\n"));
    }
    summary.digest = digest.FinishHex();
    return summary;
  }

  const ArtifactInputs& inputs_;
  const std::string& folder_;
  std::vector<Item> items_;  // in checkpoint order
  json records_ = json::array();
  std::vector<AnnouncedLinear> announced_;
  std::vector<HashedFile::Record> files_;
  double stored_bits_ = 0;
  int64_t weights_ = 0;
  double increase_ = 0;
  bool increase_known_ = true;
};

}  // namespace

absl::StatusOr<ArtifactSummary> WriteArtifact(const ArtifactInputs& inputs,
                                              const std::string& folder) {
  return Writer(inputs, folder).Write();
}

}  // namespace gradq
