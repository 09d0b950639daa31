#pragma once

// The writers that lib/format/export.cc binds to the rows of lib/catalog/export_formats.h. They may
// rely on their row's `refusal` being empty. Internal to lib/format.

#include <span>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/catalog/export_formats.h"
#include "lib/format/artifact.h"
#include "lib/format/folder_writer.h"
#include "nlohmann/json.hpp"

namespace gradq {

struct ExportInputs {
  const Artifact& artifact;
  std::span<const ExportedLinear> linears;  // in checkpoint order
  std::string config;                       // text of config.json, without quantization_config
  int64_t file_limit;
};

absl::Status ExportAnyPrecision(const ExportInputs& inputs, FolderWriter& folder);
absl::Status ExportCompressedTensors(const ExportInputs& inputs, FolderWriter& folder);
absl::Status ExportDenseBf16(const ExportInputs& inputs, FolderWriter& folder);

// What every writer does: weight files with all tensors of the model in checkpoint order, each
// linear as the item `linear_item` makes of it, then the small files and config.json with one more
// member.
absl::Status WriteExportedModel(
    const ExportInputs& inputs, std::string_view config_key, const nlohmann::json& config_value,
    absl::FunctionRef<WeightItem(const ExportedLinear& linear)> linear_item, FolderWriter& folder);

}  // namespace gradq
