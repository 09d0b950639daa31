#include "lib/format/inspect.h"

#include <algorithm>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/artifact.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/weight_files.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kTextLimit = int64_t{256} << 20;
constexpr std::string_view kReportFile = "report.json";

json Optional(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }

absl::Status Bad(std::string_view what, std::string_view member) {
  return absl::InvalidArgumentError(StrCat(what, ": member missing or of another type: ", member));
}

absl::StatusOr<InspectedLinear> ReadRecord(const json& record, std::string_view what) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, ParseLinearRecord(record, what));
  InspectedLinear inspected{.name = linear.name,
                            .method = linear.record.method,
                            .encoding = std::string(EncodingName(linear.encoding)),
                            .bits = linear.bits,
                            .average_bits = 0,
                            .out_features = linear.out_features,
                            .in_features = linear.in_features,
                            .objective_initial = linear.record.objective_initial,
                            .objective_final = linear.record.objective_final,
                            .predicted_loss_increase = linear.record.predicted_loss_increase,
                            .outlier_fraction = 0,
                            .numbers = linear.record.numbers,
                            .sha256 = {}};
  if (!record.contains("sha256") || !record["sha256"].is_string()) return Bad(what, "sha256");
  inspected.sha256 = record["sha256"].get<std::string>();
  for (const auto& [key, target] : {std::pair{"outlier_fraction", &inspected.outlier_fraction},
                                    {"average_bits", &inspected.average_bits}}) {
    if (!record.contains(key) || !record[key].is_number()) return Bad(what, key);
    *target = record[key].get<double>();
  }
  return inspected;
}

absl::Status VerifyFile(const ReadableFolder& folder, const std::string& name, int64_t size,
                        const std::string& sha256) {
  const std::string path = StrCat(folder.path(), "/", name);
  const auto file = folder.Open(name);
  if (!file.ok())
    return absl::DataLossError(StrCat("file of the artifact cannot be read: ", path, ": ",
                                      std::string(file.status().message())));
  if ((*file)->size() != size)
    return absl::DataLossError(StrCat("file of the artifact has another size: ", path, ", ",
                                      (*file)->size(), ", expected ", size));
  Sha256 digest;
  std::vector<std::byte> slice(size_t{4} << 20);
  for (int64_t offset = 0; offset < size; offset += static_cast<int64_t>(slice.size())) {
    const auto part =
        std::span(slice).first(static_cast<size_t>(std::min<int64_t>(slice.size(), size - offset)));
    GRADQ_RETURN_IF_ERROR((*file)->Read(offset, part));
    digest.Update(part);
  }
  if (digest.FinishHex() != sha256)
    return absl::DataLossError(StrCat("file of the artifact has another SHA-256: ", path));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Inspection> InspectArtifact(std::unique_ptr<ReadableFolder> folder) {
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Artifact> artifact,
                         Artifact::Open(std::move(folder)));
  const std::string what = StrCat(artifact->folder().path(), "/", kGradqFile);
  GRADQ_ASSIGN_OR_RETURN(const json root, ParseJsonObject(artifact->gradq_json(), what));
  Inspection inspection;
  for (const json& record : root["linears"]) {
    GRADQ_ASSIGN_OR_RETURN(InspectedLinear linear, ReadRecord(record, what));
    inspection.linears.push_back(std::move(linear));
  }
  if (!root.contains("average_bits") || !root["average_bits"].is_number())
    return Bad(what, "average_bits");
  inspection.average_bits = root["average_bits"].get<double>();
  if (!root.contains("predicted_loss_increase")) return Bad(what, "predicted_loss_increase");
  const json& increase = root["predicted_loss_increase"];
  if (increase.is_number()) {
    inspection.predicted_loss_increase = increase.get<double>();
  } else if (!increase.is_null()) {
    return Bad(what, "predicted_loss_increase");
  }
  if (!root.contains("recipe") || !root["recipe"].is_object()) return Bad(what, "recipe");
  inspection.recipe_json = CanonicalJson(root["recipe"]);
  if (!root.contains("numerics_class") || !root["numerics_class"].is_string())
    return Bad(what, "numerics_class");
  inspection.numerics_class = root["numerics_class"].get<std::string>();
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, artifact->folder().List());
  for (const FolderEntry& entry : entries) {
    if (entry.name != kReportFile) inspection.bytes += entry.size;
  }
  return inspection;
}

std::string InspectionJson(const Inspection& inspection) {
  json linears = json::array();
  for (const InspectedLinear& linear : inspection.linears) {
    linears.push_back({{"name", linear.name},
                       {"method", linear.method},
                       {"bits", linear.bits},
                       {"objective_initial", Optional(linear.objective_initial)},
                       {"objective_final", Optional(linear.objective_final)},
                       {"predicted_loss_increase", Optional(linear.predicted_loss_increase)},
                       {"outlier_fraction", linear.outlier_fraction},
                       {"numbers", linear.numbers},
                       {"sha256", linear.sha256}});
  }
  const json root = {{"linears", linears},
                     {"average_bits", inspection.average_bits},
                     {"bytes", inspection.bytes},
                     {"predicted_loss_increase", Optional(inspection.predicted_loss_increase)}};
  return CanonicalJson(root, 1) + "\n";
}

absl::Status VerifyArtifactFiles(const ReadableFolder& folder) {
  const std::string what = StrCat(folder.path(), "/", kGradqFile);
  GRADQ_ASSIGN_OR_RETURN(const std::string text, folder.ReadAll(kGradqFile, kTextLimit));
  GRADQ_ASSIGN_OR_RETURN(const json root, ParseJsonObject(text, what));
  if (!root.contains("files") || !root["files"].is_array()) return Bad(what, "files");
  for (const json& file : root["files"]) {
    if (!file.is_object() || !file.contains("name") || !file["name"].is_string() ||
        !file.contains("size") || !file["size"].is_number_unsigned() || !file.contains("sha256") ||
        !file["sha256"].is_string()) {
      return Bad(what, "files");
    }
    GRADQ_RETURN_IF_ERROR(VerifyFile(folder, file["name"].get<std::string>(),
                                     file["size"].get<int64_t>(),
                                     file["sha256"].get<std::string>()));
  }
  return absl::OkStatus();
}

}  // namespace gradq
