#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/export_formats.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/artifact.h"
#include "lib/format/folder_writer.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/quantization_config.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

class Writer {
 public:
  Writer(const ArtifactInputs& inputs, const std::string& folder)
      : inputs_(inputs), folder_(folder) {}

  absl::StatusOr<ArtifactSummary> Write() {
    GRADQ_ASSIGN_OR_RETURN(const json recipe, ParseJsonObject(inputs_.recipe_json, "recipe"));
    GRADQ_RETURN_IF_ERROR(CollectItems());
    GRADQ_RETURN_IF_ERROR(folder_.WriteWeights(items_, inputs_.file_limit));
    GRADQ_ASSIGN_OR_RETURN(
        const std::string config,
        InsertConfigMember(inputs_.original->config_json(), kQuantizationConfigKey,
                           MakeQuantizationConfig(announced_)));
    GRADQ_RETURN_IF_ERROR(folder_.WriteText(std::string(kConfigFile), config));
    GRADQ_RETURN_IF_ERROR(folder_.CopySmallFiles(inputs_.original->folder()));
    GRADQ_RETURN_IF_ERROR(folder_.WriteText(std::string(kGradqFile), GradqJson(recipe)));
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
        items_.push_back(CopiedTensor(*inputs_.original, std::move(info)));
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
    items_.push_back({.infos = LinearTensorInfos(linear),
                      .write = [this, name = linear.name, sha256](AppendBytes append) {
                        return AppendLinear(name, sha256, append);
                      }});

    announced_.push_back(ExportedLinearOf(linear));
    stored_bits_ += linear.average_bits() * static_cast<double>(linear.weights());
    weights_ += linear.weights();
    const std::optional<double>& increase = linear.record.predicted_loss_increase;
    if (!increase) increase_known_ = false;
    increase_ += increase.value_or(0);
    return absl::OkStatus();
  }

  absl::Status AppendLinear(const std::string& name, const std::string& sha256,
                            AppendBytes append) const {
    GRADQ_ASSIGN_OR_RETURN(const std::string bytes, inputs_.read_shard(name));
    if (Sha256Hex(bytes) != sha256)
      return absl::DataLossError(StrCat("shard changed while the artifact was written: ", name));
    GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, ParseShard(bytes));
    return append(LinearTensorBytes(linear));
  }

  std::string GradqJson(const json& recipe) {
    json files = json::array();
    for (const FolderWriter::Record& file : folder_.files())
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

  ArtifactSummary Summary() {
    ArtifactSummary summary{
        .bytes = 0, .average_bits = stored_bits_ / static_cast<double>(weights_), .digest = {}};
    Sha256 digest;
    for (const FolderWriter::Record& file : folder_.files()) {
      summary.bytes += file.size;
      digest.Update(StrCat(file.name, " ", file.size, " ", file.sha256, "\n"));
    }
    summary.digest = digest.FinishHex();
    return summary;
  }

  const ArtifactInputs& inputs_;
  FolderWriter folder_;
  std::vector<WeightItem> items_;  // in checkpoint order
  json records_ = json::array();
  std::vector<ExportedLinear> announced_;
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
