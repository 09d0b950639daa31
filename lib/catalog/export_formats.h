#pragma once

// The table of formats that `gradq export` writes: what each can hold, readable without weights.
// The writers are bound to these rows in lib/format/export.cc. Read by the CLI, the coordinator and
// the artifact writer.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/catalog/quantizers.h"

namespace gradq {

inline constexpr std::string_view kAnyPrecision = "any-precision";
inline constexpr std::string_view kCompressedTensors = "compressed-tensors";
inline constexpr std::string_view kDenseBf16 = "dense-bf16";

// What of a quantized linear decides whether a format can hold it.
struct ExportedLinear {
  std::string name;
  Encoding encoding = Encoding::kLut;
  int bits = 0;
  int64_t group_size = 0;  // kAffine
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool outliers = false;
  int64_t outlier_count = 0;
};

struct ExportFormatRow {
  std::string_view name;
  std::string_view summary;
  std::string_view files;  // what lies in the folder, and who reads it
  // Why the format cannot hold these linears of one model: the first reason, with its linear and
  // value. Empty when it can.
  std::string (*refusal)(std::span<const ExportedLinear> linears);
};

std::span<const ExportFormatRow> ExportFormats();
// INVALID_ARGUMENT naming the nearest known format.
absl::StatusOr<const ExportFormatRow*> FindExportFormat(std::string_view name);

// FAILED_PRECONDITION with the row's refusal and the formats that can hold the linears.
absl::Status CheckExport(const ExportFormatRow& row, std::span<const ExportedLinear> linears);

}  // namespace gradq
