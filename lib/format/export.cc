#include "lib/format/export.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/catalog/config_reader.h"
#include "lib/format/exports/writers.h"
#include "lib/format/quantization_config.h"

namespace gradq {
namespace {

constexpr int64_t kConfigLimit = int64_t{256} << 20;

struct ExportBinding {
  std::string_view name;
  absl::Status (*write)(const ExportInputs& inputs, FolderWriter& folder);
};

constexpr ExportBinding kBindings[] = {
    {kAnyPrecision, ExportAnyPrecision},
    {kCompressedTensors, ExportCompressedTensors},
    {kDenseBf16, ExportDenseBf16},
};

}  // namespace

std::vector<ExportedLinear> ExportedLinearsOf(const Artifact& artifact) {
  std::vector<ExportedLinear> linears;
  for (const std::string& name : artifact.linears()) linears.push_back(artifact.Describe(name));
  return linears;
}

absl::Status ExportArtifact(const Artifact& artifact, std::string_view format,
                            const std::string& folder, int64_t file_limit) {
  GRADQ_ASSIGN_OR_RETURN(const ExportFormatRow* row, FindExportFormat(format));
  const std::vector<ExportedLinear> linears = ExportedLinearsOf(artifact);
  GRADQ_RETURN_IF_ERROR(CheckExport(*row, linears));
  const auto* binding = std::find_if(std::begin(kBindings), std::end(kBindings),
                                     [&](const auto& entry) { return entry.name == row->name; });
  GRADQ_CHECK(binding != std::end(kBindings));
  GRADQ_ASSIGN_OR_RETURN(const std::string text,
                         artifact.folder().ReadAll(kConfigFile, kConfigLimit));
  GRADQ_ASSIGN_OR_RETURN(std::string config, RemoveConfigMember(text, kQuantizationConfigKey));
  FolderWriter writer(folder);
  return binding->write({.artifact = artifact,
                         .linears = linears,
                         .config = std::move(config),
                         .file_limit = file_limit},
                        writer);
}

absl::Status WriteExportedModel(
    const ExportInputs& inputs, std::string_view config_key, const nlohmann::json& config_value,
    absl::FunctionRef<WeightItem(const ExportedLinear& linear)> linear_item, FolderWriter& folder) {
  std::map<std::string, const ExportedLinear*> linears;
  for (const ExportedLinear& linear : inputs.linears) linears[linear.name + ".weight"] = &linear;
  std::vector<WeightItem> items;
  for (const TensorShape& tensor : TensorsOf(inputs.artifact.geometry())) {
    const auto linear = linears.find(tensor.name);
    if (linear != linears.end()) {
      items.push_back(linear_item(*linear->second));
    } else {
      GRADQ_ASSIGN_OR_RETURN(TensorInfo info, inputs.artifact.dense().Find(tensor.name));
      items.push_back(CopiedTensor(inputs.artifact.dense(), std::move(info)));
    }
  }
  GRADQ_RETURN_IF_ERROR(folder.WriteWeights(items, inputs.file_limit));
  GRADQ_RETURN_IF_ERROR(folder.CopySmallFiles(inputs.artifact.folder()));
  GRADQ_ASSIGN_OR_RETURN(const std::string config,
                         InsertConfigMember(inputs.config, config_key, config_value));
  return folder.WriteText(std::string(kConfigFile), config);
}

}  // namespace gradq
