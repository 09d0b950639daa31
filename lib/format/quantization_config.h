#pragma once

// The quantization_config that an artifact's config.json carries. Internal to lib/format.

#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "lib/catalog/export_formats.h"
#include "lib/format/quantized_linear.h"
#include "nlohmann/json.hpp"

namespace gradq {

inline constexpr char kQuantizationConfigKey[] = "quantization_config";

ExportedLinear ExportedLinearOf(const QuantizedLinear& linear);

// The version of FORMAT.md that a reader must know.
int VersionFor(std::span<const ExportedLinear> linears);

// compressed-tensors' pack-quantized where that format can hold every linear (its row in
// lib/catalog/export_formats.h), gradq's own otherwise.
nlohmann::json MakeQuantizationConfig(std::span<const ExportedLinear> linears);
// Of linears that compressed-tensors can hold.
nlohmann::json CompressedTensorsConfig(std::span<const ExportedLinear> linears);

// The text of config.json with a member added (or, when it stood there, replaced); all other bytes
// stay where there was none.
absl::StatusOr<std::string> InsertConfigMember(std::string_view config_json, std::string_view key,
                                               const nlohmann::json& value);
// The same without a member: what InsertConfigMember added is cut out, and all other bytes stay.
absl::StatusOr<std::string> RemoveConfigMember(std::string_view config_json, std::string_view key);

}  // namespace gradq
