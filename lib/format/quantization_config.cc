#include "lib/format/quantization_config.h"

#include <algorithm>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/artifact.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr char kKey[] = "quantization_config";

}  // namespace

ExportedLinear ExportedLinearOf(const QuantizedLinear& linear) {
  return {.name = linear.name,
          .encoding = linear.encoding,
          .bits = linear.bits,
          .group_size = linear.group_size,
          .out_features = linear.out_features,
          .in_features = linear.in_features,
          .outliers = !linear.outliers.empty()};
}

int VersionFor(std::span<const ExportedLinear> linears) {
  return std::any_of(linears.begin(), linears.end(),
                     [](const ExportedLinear& linear) { return linear.outliers; })
             ? kArtifactVersion
             : kVersionWithoutOutliers;
}

json MakeQuantizationConfig(std::span<const ExportedLinear> linears) {
  if ((*FindExportFormat(kCompressedTensors))->refusal(linears).empty())
    return CompressedTensorsConfig(linears);
  return {{"quant_method", kQuantMethod},
          {"format_version", VersionFor(linears)},
          {"ignore", {"lm_head"}}};
}

json CompressedTensorsConfig(std::span<const ExportedLinear> linears) {
  json weights = {{"num_bits", linears.front().bits},
                  {"type", "int"},
                  {"symmetric", false},
                  {"strategy", "group"},
                  {"group_size", linears.front().group_size},
                  {"dynamic", false}};
  // Groups of whole rows where rows differ in length.
  if (std::any_of(linears.begin(), linears.end(), [&](const ExportedLinear& linear) {
        return linear.group_size != linears.front().group_size;
      })) {
    weights["strategy"] = "channel";
    weights["group_size"] = nullptr;
  }
  const json group = {{"targets", {"Linear"}},
                      {"weights", weights},
                      {"input_activations", nullptr},
                      {"output_activations", nullptr}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", group}}},
          {"ignore", {"lm_head"}}};
}

absl::StatusOr<std::string> InsertQuantizationConfig(std::string_view config_json,
                                                     const json& quantization_config) {
  GRADQ_ASSIGN_OR_RETURN(json config, ParseJsonObject(config_json, kConfigFile));
  if (config.contains(kKey) || config.empty()) {
    config[kKey] = quantization_config;
    return CanonicalJson(config, 2) + "\n";
  }
  // The last brace of a valid object closes it. What stands before it stays as it is, numbers in
  // their spelling included.
  std::string text(config_json);
  const size_t brace = text.rfind('}');
  const size_t last = text.find_last_not_of(" \t\r\n", brace - 1);
  std::string member = CanonicalJson(quantization_config, 2);
  for (size_t at = 0; (at = member.find('\n', at)) != std::string::npos; at += 3)
    member.insert(at + 1, "  ");
  return StrCat(text.substr(0, last + 1), ",\n  \"", kKey, "\": ", member, "\n",
                text.substr(brace));
}

}  // namespace gradq
