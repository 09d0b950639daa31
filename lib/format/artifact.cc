#include "lib/format/artifact.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/quantization_config.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kTextLimit = int64_t{256} << 20;

class FolderArtifact : public Artifact {
 public:
  explicit FolderArtifact(std::unique_ptr<ReadableFolder> folder) : folder_(std::move(folder)) {}

  absl::Status Load() {
    GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, folder_->List());
    for (const std::string_view name : {kConfigFile, kGradqFile}) {
      if (std::none_of(entries.begin(), entries.end(),
                       [&](const FolderEntry& entry) { return entry.name == name; })) {
        return absl::FailedPreconditionError(
            StrCat("not a gradq artifact, ", name, " missing: ", folder_->path()));
      }
    }
    GRADQ_ASSIGN_OR_RETURN(const std::string config, folder_->ReadAll(kConfigFile, kTextLimit));
    absl::StatusOr<ModelGeometry> geometry = ParseGeometry(config);
    if (!geometry.ok()) {
      return absl::Status(geometry.status().code(),
                          StrCat(folder_->path(), "/", std::string(geometry.status().message())));
    }
    geometry_ = *std::move(geometry);
    GRADQ_ASSIGN_OR_RETURN(gradq_json_, folder_->ReadAll(kGradqFile, kTextLimit));
    GRADQ_RETURN_IF_ERROR(ReadRecords());
    GRADQ_RETURN_IF_ERROR(weights_.Load(*folder_, entries));
    return CheckTensors();
  }

  const ModelGeometry& geometry() const override { return geometry_; }
  const ReadableFolder& folder() const override { return *folder_; }
  const TensorSource& dense() const override { return weights_; }
  const std::vector<std::string>& linears() const override { return linears_; }
  const std::string& gradq_json() const override { return gradq_json_; }

  ExportedLinear Describe(const std::string& name) const override {
    ExportedLinear linear = ExportedLinearOf(records_.at(name));
    const double fraction = outlier_fraction_.at(name);
    const double weights =
        static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
    linear.outliers = fraction > 0;
    linear.outlier_count = std::llround(fraction * weights);
    return linear;
  }

  absl::StatusOr<QuantizedLinear> ReadLinear(const std::string& name) const override {
    const auto it = records_.find(name);
    if (it == records_.end())
      return absl::NotFoundError(StrCat("linear missing: ", name, " in ", folder_->path()));
    QuantizedLinear linear = it->second;
    const absl::Status status =
        ReadLinearTensors([&](const std::string& tensor) { return weights_.Find(tensor); },
                          [&](const std::string& tensor, std::span<std::byte> out) {
                            return weights_.Read(tensor, out);
                          },
                          &linear);
    if (!status.ok())
      return absl::Status(status.code(),
                          StrCat(folder_->path(), ": ", std::string(status.message())));
    return linear;
  }

 private:
  absl::Status Bad(std::string_view file, std::string_view fact) const {
    return absl::InvalidArgumentError(StrCat(folder_->path(), "/", file, ": ", fact));
  }

  absl::Status ReadRecords() {
    const std::string path = StrCat(folder_->path(), "/", kGradqFile);
    GRADQ_ASSIGN_OR_RETURN(const json root, ParseJsonObject(gradq_json_, path));
    if (!root.contains("format_version") || !root["format_version"].is_number_unsigned())
      return Bad(kGradqFile, "format_version missing");
    if (root["format_version"].get<uint64_t>() > static_cast<uint64_t>(kArtifactVersion)) {
      return absl::UnimplementedError(StrCat(path, ": format version is newer than this program: ",
                                             root["format_version"].get<uint64_t>(), ", known ",
                                             kArtifactVersion));
    }
    if (root["format_version"].get<uint64_t>() < 1)
      return Bad(kGradqFile, "format_version below 1");
    version_ = root["format_version"].get<int>();
    if (!root.contains("linears") || !root["linears"].is_array())
      return Bad(kGradqFile, "linears missing");

    const std::vector<LinearShape> shapes = LinearsOf(geometry_);
    if (root["linears"].size() != shapes.size()) {
      return Bad(kGradqFile, StrCat("number of linears contradicts config.json: ",
                                    root["linears"].size(), ", expected ", shapes.size()));
    }
    for (size_t i = 0; i < shapes.size(); ++i) {
      GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear, ParseLinearRecord(root["linears"][i], path));
      if (linear.name != shapes[i].name)
        return Bad(kGradqFile,
                   StrCat("linear out of place: ", linear.name, ", expected ", shapes[i].name));
      if (linear.out_features != shapes[i].out_features ||
          linear.in_features != shapes[i].in_features) {
        return Bad(kGradqFile, StrCat("shape of ", linear.name, " contradicts config.json: ",
                                      linear.out_features, " × ", linear.in_features, ", expected ",
                                      shapes[i].out_features, " × ", shapes[i].in_features));
      }
      const json& fraction = root["linears"][i].value("outlier_fraction", json(0));
      if (!fraction.is_number())
        return Bad(kGradqFile, StrCat("outlier_fraction is not a number: ", linear.name));
      outlier_fraction_[linear.name] = fraction.get<double>();
      linears_.push_back(linear.name);
      records_.emplace(linear.name, std::move(linear));
    }
    return absl::OkStatus();
  }

  // How many there are by the tensors; the record must say the same share.
  absl::StatusOr<int64_t> OutliersOf(const QuantizedLinear& linear) const {
    const absl::StatusOr<int64_t> count = StoredOutliers(
        linear.name, [&](const std::string& tensor) { return weights_.Find(tensor); });
    if (!count.ok()) return Bad(weights_.files().front(), std::string(count.status().message()));
    const double fraction = static_cast<double>(*count) / static_cast<double>(linear.weights());
    if (fraction != outlier_fraction_.at(linear.name)) {
      return Bad(kGradqFile, StrCat("outlier_fraction of ", linear.name,
                                    " contradicts its tensors: ", outlier_fraction_.at(linear.name),
                                    ", expected ", fraction));
    }
    if (*count > 0 && version_ == kVersionWithoutOutliers)
      return Bad(kGradqFile,
                 StrCat("format version ", version_, " has no outliers: ", linear.name));
    return *count;
  }

  // Every tensor that must be there is, with the sizes that a reader will rely on.
  absl::Status CheckTensors() const {
    const auto check = [&](const std::string& name,
                           const std::vector<int64_t>& shape) -> absl::StatusOr<TensorInfo> {
      absl::StatusOr<TensorInfo> tensor = weights_.Find(name);
      if (!tensor.ok()) return Bad(weights_.files().front(), StrCat("tensor missing: ", name));
      if (tensor->shape != shape)
        return Bad(weights_.FileOf(name), StrCat("shape contradicts config.json: ", name));
      return tensor;
    };
    for (const auto& [name, linear] : records_) {
      GRADQ_ASSIGN_OR_RETURN(const int64_t outliers, OutliersOf(linear));
      for (const TensorInfo& expected : LinearTensorInfos(linear, outliers)) {
        GRADQ_ASSIGN_OR_RETURN(const TensorInfo tensor, check(expected.name, expected.shape));
        if (tensor.dtype != expected.dtype) {
          return Bad(weights_.FileOf(expected.name),
                     StrCat("dtype of ", expected.name, ": ", DTypeName(tensor.dtype)));
        }
      }
    }
    for (const TensorShape& expected : DenseTensorsOf(geometry_)) {
      GRADQ_ASSIGN_OR_RETURN(const TensorInfo tensor, check(expected.name, expected.shape));
      if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 &&
          tensor.dtype != DType::kBF16) {
        return Bad(weights_.FileOf(expected.name),
                   StrCat("dtype of ", expected.name,
                          " is not F32, F16 or BF16: ", DTypeName(tensor.dtype)));
      }
    }
    return absl::OkStatus();
  }

  std::unique_ptr<ReadableFolder> folder_;
  ModelGeometry geometry_;
  std::string gradq_json_;
  std::vector<std::string> linears_;
  std::map<std::string, QuantizedLinear> records_;  // without codes and tables
  std::map<std::string, double> outlier_fraction_;  // by linear
  int version_ = 0;
  WeightFiles weights_;
};

}  // namespace

std::vector<TensorShape> DenseTensorsOf(const ModelGeometry& geometry) {
  std::set<std::string> quantized;
  for (const LinearShape& linear : LinearsOf(geometry)) quantized.insert(linear.name + ".weight");
  std::vector<TensorShape> tensors = TensorsOf(geometry);
  std::erase_if(tensors,
                [&](const TensorShape& tensor) { return quantized.contains(tensor.name); });
  return tensors;
}

absl::StatusOr<std::unique_ptr<Artifact>> Artifact::Open(std::unique_ptr<ReadableFolder> folder) {
  auto artifact = std::make_unique<FolderArtifact>(std::move(folder));
  GRADQ_RETURN_IF_ERROR(artifact->Load());
  return artifact;
}

}  // namespace gradq
