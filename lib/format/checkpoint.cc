#include "lib/format/checkpoint.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/safetensors.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kConfigLimit = int64_t{16} << 20;

// What config.json says of an earlier quantization: its method, empty when there is none.
absl::StatusOr<std::string> QuantizationMethod(std::string_view config) {
  GRADQ_ASSIGN_OR_RETURN(const json value, ParseJsonObject(config, kConfigFile));
  const ConfigReader reader(value, "");
  if (!reader.Has("quantization_config")) return std::string();
  GRADQ_ASSIGN_OR_RETURN(const ConfigReader quantization, reader.Object("quantization_config"));
  return quantization.Word("quant_method", "unknown");
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += StrCat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

class FolderCheckpoint : public Checkpoint {
 public:
  explicit FolderCheckpoint(std::unique_ptr<ReadableFolder> folder) : folder_(std::move(folder)) {}

  absl::Status Load() {
    GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, folder_->List());
    const auto has = [&](std::string_view name) {
      return std::any_of(entries.begin(), entries.end(),
                         [&](const FolderEntry& entry) { return entry.name == name; });
    };
    if (!has(kConfigFile))
      return absl::FailedPreconditionError(StrCat("config.json missing: ", folder_->path()));
    GRADQ_ASSIGN_OR_RETURN(config_json_, folder_->ReadAll(kConfigFile, kConfigLimit));
    GRADQ_RETURN_IF_ERROR(InFolder(ReadConfig(has(kGradqFile))));
    GRADQ_RETURN_IF_ERROR(weights_.Load(*folder_, entries));
    if (!quantized_) GRADQ_RETURN_IF_ERROR(InFolder(CheckShapes()));
    return absl::OkStatus();
  }

  const std::vector<TensorInfo>& tensors() const override { return weights_.tensors(); }
  absl::StatusOr<TensorInfo> Find(std::string_view name) const override {
    return weights_.Find(name);
  }
  absl::Status ReadRange(std::string_view name, int64_t offset,
                         std::span<std::byte> out) const override {
    return weights_.ReadRange(name, offset, out);
  }

  const ModelGeometry& geometry() const override { return geometry_; }
  const ReadableFolder& folder() const override { return *folder_; }
  const std::string& config_json() const override { return config_json_; }
  const std::vector<std::string>& weight_files() const override { return weights_.files(); }
  bool quantized() const override { return quantized_; }
  const std::string& layout_digest() const override { return weights_.layout_digest(); }

 private:
  // Puts the folder in front of a message that names only the file.
  absl::Status InFolder(const absl::Status& status) const {
    if (status.ok()) return status;
    return absl::Status(status.code(), StrCat(folder_->path(), "/", std::string(status.message())));
  }

  absl::Status ReadConfig(bool has_gradq_json) {
    GRADQ_ASSIGN_OR_RETURN(geometry_, ParseGeometry(config_json_));
    GRADQ_ASSIGN_OR_RETURN(const std::string method, QuantizationMethod(config_json_));
    quantized_ = method == kQuantMethod || (!method.empty() && has_gradq_json);
    if (!method.empty() && !quantized_) {
      return absl::FailedPreconditionError(
          StrCat(kConfigFile, ": the checkpoint is already quantized: ", method));
    }
    return absl::OkStatus();
  }

  absl::Status CheckShapes() const {
    for (const TensorShape& expected : TensorsOf(geometry_)) {
      const absl::StatusOr<TensorInfo> tensor = weights_.Find(expected.name);
      if (!tensor.ok()) {
        return absl::InvalidArgumentError(StrCat(weights_.files().size() == 1
                                                     ? std::string_view(weights_.files().front())
                                                     : kWeightIndexFile,
                                                 ": tensor missing: ", expected.name));
      }
      if (tensor->shape != expected.shape) {
        return absl::InvalidArgumentError(
            StrCat(weights_.FileOf(expected.name), ": shape of ", expected.name,
                   " contradicts config.json: ", ShapeText(tensor->shape), ", expected ",
                   ShapeText(expected.shape)));
      }
      if (tensor->dtype != DType::kF32 && tensor->dtype != DType::kF16 &&
          tensor->dtype != DType::kBF16) {
        return absl::InvalidArgumentError(
            StrCat(weights_.FileOf(expected.name), ": dtype of ", expected.name,
                   " is not F32, F16 or BF16: ", DTypeName(tensor->dtype)));
      }
    }
    return absl::OkStatus();
  }

  std::unique_ptr<ReadableFolder> folder_;
  std::string config_json_;
  ModelGeometry geometry_;
  bool quantized_ = false;
  WeightFiles weights_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    std::unique_ptr<ReadableFolder> folder) {
  auto checkpoint = std::make_unique<FolderCheckpoint>(std::move(folder));
  GRADQ_RETURN_IF_ERROR(checkpoint->Load());
  return checkpoint;
}

absl::Status CheckFinite(const Checkpoint& checkpoint) {
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16)
      continue;
    GRADQ_RETURN_IF_ERROR(
        checkpoint.VisitFloat32(tensor.name, [](int64_t, std::span<const float>) {}));
  }
  return absl::OkStatus();
}

}  // namespace gradq
