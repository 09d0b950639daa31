#include "lib/format/quantization_config.h"

#include <algorithm>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/config_reader.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/artifact.h"
#include "lib/format/weight_files.h"

namespace gradq {

using nlohmann::json;

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
          // transformers 5.23 with compressed-tensors 0.20 gives modules that stay compressed zero
          // points of unpacked shape (meta device) and then refuses the packed ones of the file. It
          // would decompress at the first forward pass anyway; other readers ignore the member.
          {"dequantize", true},
          {"config_groups", {{"group_0", group}}},
          {"ignore", {"lm_head"}}};
}

absl::StatusOr<std::string> InsertConfigMember(std::string_view config_json, std::string_view key,
                                               const json& value) {
  GRADQ_ASSIGN_OR_RETURN(json config, ParseJsonObject(config_json, kConfigFile));
  if (config.contains(key) || config.empty()) {
    config[std::string(key)] = value;
    return CanonicalJson(config, 2) + "\n";
  }
  // The last brace of a valid object closes it. What stands before it stays as it is, numbers in
  // their spelling included.
  std::string text(config_json);
  const size_t brace = text.rfind('}');
  const size_t last = text.find_last_not_of(" \t\r\n", brace - 1);
  std::string member = CanonicalJson(value, 2);
  for (size_t at = 0; (at = member.find('\n', at)) != std::string::npos; at += 3)
    member.insert(at + 1, "  ");
  return StrCat(text.substr(0, last + 1), ",\n  \"", key, "\": ", member, "\n", text.substr(brace));
}

absl::StatusOr<std::string> RemoveConfigMember(std::string_view config_json, std::string_view key) {
  GRADQ_ASSIGN_OR_RETURN(json config, ParseJsonObject(config_json, kConfigFile));
  if (config.erase(std::string(key)) == 0) return std::string(config_json);
  const size_t start = config_json.rfind(StrCat(",\n  \"", key, "\": "));
  if (start != std::string_view::npos) {
    std::string text =
        StrCat(config_json.substr(0, start), "\n", config_json.substr(config_json.rfind('}')));
    // Only when the member was the last one is this the same object.
    const absl::StatusOr<json> cut = ParseJsonObject(text, kConfigFile);
    if (cut.ok() && *cut == config) return text;
  }
  return CanonicalJson(config, 2) + "\n";
}

}  // namespace gradq
