#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/export_formats.h"
#include "lib/catalog/quantizers.h"
#include "lib/format/artifact.h"
#include "lib/format/export.h"
#include "lib/format/inspect.h"
#include "services/cli/commands.h"
#include "services/cli/local_job.h"
#include "services/cli/remote.h"
#include "services/cli/report.h"

namespace gradq {
namespace {

// Not a row of the table of formats: the artifact itself.
constexpr char kNative[] = "gradq";

struct ExportFlags {
  std::string source;
  std::string output;
  std::string format = kNative;
  std::optional<double> average_bits;
  Remote remote;
  // Of a job that solves on a grid.
  std::string model;
  std::string calibration;
  int grid_bits = 0;
  ClusterOptions cluster;
  bool force = false;
  bool json = false;
};

// What stands at the output now.
struct Exported {
  Inspection native;           // of the artifact it came from
  std::optional<v1::Job> job;  // that made it
  int64_t bytes = 0;
};

bool IsJobName(std::string_view source) {
  constexpr std::string_view kPrefix = "jobs/";
  return source.starts_with(kPrefix) && source.size() > kPrefix.size() &&
         std::all_of(source.begin() + kPrefix.size(), source.end(),
                     [](char c) { return c >= '0' && c <= '9'; });
}

absl::StatusOr<Inspection> Inspect(const std::string& folder) {
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> readable, OpenLocalFolder(folder));
  return InspectArtifact(std::move(readable));
}

absl::StatusOr<int64_t> FolderBytes(const std::string& folder) {
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFolder> readable, OpenLocalFolder(folder));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, readable->List());
  int64_t bytes = 0;
  for (const FolderEntry& entry : entries) bytes += entry.size;
  return bytes;
}

// The artifact at `folder` in the asked format at the output.
absl::Status Convert(const ExportFlags& flags, const std::string& folder) {
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> readable, OpenLocalFolder(folder));
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Artifact> artifact,
                         Artifact::Open(std::move(readable)));
  GRADQ_ASSIGN_OR_RETURN(AtomicFolder target, AtomicFolder::Create(flags.output, flags.force));
  GRADQ_RETURN_IF_ERROR(ExportArtifact(*artifact, flags.format, target.staging()));
  return target.Commit();
}

// A private folder for the artifact before it is converted, on the output's disk.
absl::StatusOr<WorkFolder> StagingFolder(const ExportFlags& flags) {
  if (!flags.cluster.work_folder.empty()) return WorkFolder::Create(flags.cluster.work_folder);
  GRADQ_ASSIGN_OR_RETURN(const std::string output, AbsolutePath(flags.output));
  const std::string parent = std::filesystem::path(output).parent_path().string();
  GRADQ_RETURN_IF_ERROR(MakeFolders(parent));
  return WorkFolder::Create(parent);
}

// --- a job of a coordinator ---

// Another point of `source`: a job of its own, followed to its end.
absl::StatusOr<v1::Job> MakePoint(const ExportFlags& flags, const std::string& output,
                                  CoordinatorLink& link) {
  v1::JobSpec spec;
  spec.set_source_job(flags.source);
  spec.mutable_recipe()->set_average_bits(*flags.average_bits);
  spec.set_output(output);
  spec.set_force(flags.force);
  GRADQ_ASSIGN_OR_RETURN(const v1::Job created, link.client.Create(spec, NewRequestId()));
  if (link.cluster != nullptr) return FollowLocalJob(created.name(), link.client, *link.cluster);
  GRADQ_ASSIGN_OR_RETURN(v1::Job job, WatchJob(link.client, created.name()));
  if (job.state() == v1::Job::SUCCEEDED) return job;
  return absl::AbortedError(StrCat(job.name(), " ended as ",
                                   std::string(v1::Job::State_Name(job.state())), ": ",
                                   job.message()));
}

absl::StatusOr<Exported> ExportJob(const ExportFlags& flags) {
  GRADQ_ASSIGN_OR_RETURN(CoordinatorLink link,
                         OpenCoordinator(flags.remote, flags.average_bits.has_value()));
  const bool native = flags.format == kNative;
  GRADQ_ASSIGN_OR_RETURN(const WorkFolder staging, StagingFolder(flags));
  std::string folder = staging.path() + "/artifact";
  if (native) {
    GRADQ_ASSIGN_OR_RETURN(folder, AbsolutePath(flags.output));
  }
  Exported exported;
  // A coordinator of our own writes where we want it; another one keeps the artifact for download.
  const bool direct = link.cluster != nullptr && flags.average_bits.has_value();
  if (flags.average_bits.has_value()) {
    GRADQ_ASSIGN_OR_RETURN(exported.job, MakePoint(flags, direct ? folder : "", link));
  } else {
    GRADQ_ASSIGN_OR_RETURN(exported.job, link.client.Get(flags.source));
  }
  if (!direct) {
    GRADQ_RETURN_IF_ERROR(link.client.Download(exported.job->name(), folder, flags.force));
  }
  GRADQ_ASSIGN_OR_RETURN(exported.native, Inspect(folder));
  if (!native) GRADQ_RETURN_IF_ERROR(Convert(flags, folder));
  return exported;
}

// --- a folder ---

// What keeps a model with codebooks from a grid of one width; empty: nothing.
std::string GridRefusal(const Inspection& native) {
  for (const InspectedLinear& linear : native.linears) {
    if (linear.outlier_fraction > 0) return StrCat("holds no outliers: ", linear.name);
    if (linear.bits != native.linears.front().bits) {
      return StrCat("holds one width, not ", native.linears.front().bits, " and ", linear.bits,
                    ": ", linear.name);
    }
  }
  return "";
}

// The job that made an artifact, but on a grid of `grid_bits`. FAILED_PRECONDITION when the text is
// not the one it was calibrated on.
absl::StatusOr<v1::JobSpec> GridSpec(const ExportFlags& flags, const Inspection& native) {
  const nlohmann::json recorded = nlohmann::json::parse(native.recipe_json, nullptr, false);
  // The file is the user's: what is not there, or of another type, counts as 0 or empty.
  const auto number = [&](const char* name) -> int {
    const bool there = recorded.is_object() && recorded.contains(name);
    return there && recorded[name].is_number_integer() ? recorded[name].get<int>() : 0;
  };
  const auto text = [&](const char* name) -> std::string {
    const bool there = recorded.is_object() && recorded.contains(name);
    return there && recorded[name].is_string() ? recorded[name].get<std::string>() : "";
  };
  if (text("method").empty() || number("bits") == 0) {
    return absl::FailedPreconditionError(StrCat("gradq.json tells no recipe: ", flags.source));
  }
  GRADQ_ASSIGN_OR_RETURN(const std::string calibration, ReadFile(flags.calibration));
  if (Sha256Hex(calibration) != text("calibration_sha256")) {
    return absl::FailedPreconditionError(
        StrCat("not the text that the model was calibrated on (its SHA-256 is in gradq.json): ",
               flags.calibration, ", ", text("calibration_sha256")));
  }
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(text("method")));
  if (std::none_of(row->options.begin(), row->options.end(),
                   [](const OptionSpec& option) { return option.name == "grid_bits"; })) {
    return absl::FailedPreconditionError(
        StrCat("method cannot solve on a grid, ", kDenseBf16, " can hold its result: ", row->name));
  }
  v1::JobSpec spec;
  spec.set_model(flags.model);
  v1::Recipe& recipe = *spec.mutable_recipe();
  recipe.set_method(text("method"));
  recipe.set_bits(number("bits"));
  recipe.set_objective(text("objective"));
  recipe.set_groups(number("groups"));
  if (recorded.contains("options") && recorded["options"].is_object()) {
    for (const auto& [name, value] : recorded["options"].items()) {
      if (value.is_string()) (*recipe.mutable_options())[name] = value.get<std::string>();
    }
  }
  const int grid_bits = flags.grid_bits != 0 ? flags.grid_bits : (recipe.bits() <= 2 ? 4 : 8);
  (*recipe.mutable_options())["grid_bits"] = std::to_string(grid_bits);
  spec.set_sequences(number("sequences"));
  spec.set_length(number("length"));
  spec.set_chunk_sequences(number("chunk_sequences"));
  spec.set_compute_dtype(text("compute_dtype"));
  if (recorded.contains("shuffle_seed") && recorded["shuffle_seed"].is_number_unsigned())
    spec.set_shuffle_seed(recorded["shuffle_seed"].get<uint64_t>());
  return spec;
}

// Codebooks do not fit an integer grid: the linears are solved again with the grid as a condition.
absl::StatusOr<Exported> ExportOnGrid(const ExportFlags& flags, const Inspection& native) {
  if (const std::string refusal = GridRefusal(native); !refusal.empty()) {
    return absl::FailedPreconditionError(
        StrCat("compressed-tensors cannot hold this model, ", refusal, "; ", kDenseBf16, " can"));
  }
  if (flags.model.empty() || flags.calibration.empty()) {
    return absl::FailedPreconditionError(StrCat(
        "compressed-tensors holds integer grids, this model has codebooks: with --model DIR and "
        "--calibration FILE (those it was made from) its weights are solved again on a grid: ",
        flags.source));
  }
  LocalJob local;
  GRADQ_ASSIGN_OR_RETURN(local.spec, GridSpec(flags, native));
  GRADQ_ASSIGN_OR_RETURN(const WorkFolder staging, StagingFolder(flags));
  const std::string folder = staging.path() + "/artifact";
  local.spec.set_output(folder);
  local.calibration = flags.calibration;
  local.cluster = flags.cluster;
  GRADQ_ASSIGN_OR_RETURN(FinishedJob finished, RunLocalJob(local));
  Exported exported;
  GRADQ_ASSIGN_OR_RETURN(exported.native, Inspect(folder));
  GRADQ_RETURN_IF_ERROR(Convert(flags, folder));
  return exported;
}

absl::StatusOr<Exported> ExportFolder(const ExportFlags& flags) {
  if (flags.average_bits.has_value()) {
    return absl::InvalidArgumentError(
        StrCat("another point needs the job that keeps the shards of all widths (jobs/ID with "
               "--coordinator or --data-dir), not a folder: ",
               flags.source));
  }
  Exported exported;
  GRADQ_ASSIGN_OR_RETURN(exported.native, Inspect(flags.source));
  if (flags.format == kNative) {
    return absl::InvalidArgumentError(
        StrCat("the folder is in this format already (another one: --format): ", flags.source));
  }
  const bool codebooks =
      std::any_of(exported.native.linears.begin(), exported.native.linears.end(),
                  [](const InspectedLinear& linear) { return linear.encoding == "lut"; });
  if (flags.format == kCompressedTensors && codebooks) return ExportOnGrid(flags, exported.native);
  GRADQ_RETURN_IF_ERROR(Convert(flags, flags.source));
  return exported;
}

// --- what it prints ---

std::string ToJson(const ExportFlags& flags, const Exported& exported) {
  nlohmann::ordered_json result = {{"output", flags.output},
                                   {"format", flags.format},
                                   {"bytes", exported.bytes},
                                   {"average_bits", exported.native.average_bits},
                                   {"predicted_loss_increase", nullptr},
                                   {"job", nullptr},
                                   {"evaluation", nullptr}};
  if (exported.native.predicted_loss_increase.has_value())
    result["predicted_loss_increase"] = *exported.native.predicted_loss_increase;
  if (exported.job.has_value()) {
    result["job"] = exported.job->name();
    const v1::Validation& validation = exported.job->validation();
    if (validation.state() == v1::Validation::DONE)
      result["evaluation"] = nlohmann::ordered_json::parse(ComparisonJson(validation.comparison()));
  }
  return result.dump();
}

absl::Status RunExport(const ExportFlags& flags) {
  if (flags.format != kNative) GRADQ_RETURN_IF_ERROR(FindExportFormat(flags.format).status());
  if (!flags.force && PathExists(flags.output)) {
    return absl::AlreadyExistsError(
        StrCat("output exists (replace it with --force): ", flags.output));
  }
  GRADQ_ASSIGN_OR_RETURN(Exported exported,
                         IsJobName(flags.source) ? ExportJob(flags) : ExportFolder(flags));
  GRADQ_ASSIGN_OR_RETURN(exported.bytes, FolderBytes(flags.output));
  if (flags.json) {
    std::printf("%s\n", ToJson(flags, exported).c_str());
    return absl::OkStatus();
  }
  std::printf("%s: %s, %s\n", flags.output.c_str(), flags.format.c_str(),
              FormatBytes(static_cast<double>(exported.bytes)).c_str());
  if (exported.job.has_value())
    std::printf("%s", ResultTable(*exported.job, OutlierFraction(exported.native)).c_str());
  return absl::OkStatus();
}

std::string FormatNames() {
  std::string names = kNative;
  for (const ExportFormatRow& row : ExportFormats()) names += StrCat(", ", row.name);
  return names;
}

}  // namespace

void AddExportCommand(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ExportFlags>();
  CLI::App* command = app.add_subcommand(
      "export", "Write a model in another format, or another point of a job with mixed widths");
  command->footer(
      "SOURCE is the folder of a quantized model, or a job with --coordinator or --data-dir.\n"
      "compressed-tensors from a model with codebooks solves its weights again on an integer grid, "
      "for which it\n"
      "needs the original model and the calibration text.\n"
      "Examples:\n"
      "  gradq export llama-3bit --format any-precision --output llama-anyprec\n"
      "  gradq export jobs/1 --average-bits 2.7 --data-dir kept --output llama-2.7bit\n"
      "  gradq export llama-3bit --format compressed-tensors --model llama --calibration text.txt "
      "--output llama-w8");
  command->add_option("source", flags->source, "Quantized folder, or jobs/ID")->required();
  command->add_option("--output", flags->output, "Folder to make")->required()->type_name("DIR");
  command->add_option("--format", flags->format, FormatNames())->capture_default_str();
  command
      ->add_option("--average-bits", flags->average_bits,
                   "Of a job with mixed widths: the point with so many bits per weight at most")
      ->check(CLI::PositiveNumber);
  AddRemoteOrDataFlags(*command, flags->remote);
  command->add_option("--model", flags->model, "Original model, to solve again on a grid")
      ->type_name("DIR");
  command->add_option("--calibration", flags->calibration, "The text it was calibrated on")
      ->type_name("FILE");
  command
      ->add_option("--grid-bits", flags->grid_bits,
                   "Bits of the grid (default: 4 for models of 2 bits, 8 above)")
      ->check(CLI::IsMember({4, 8}));
  flags->cluster.workers = 2;
  command->add_option("--workers", flags->cluster.workers, "Worker processes of a new solve")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--threads", flags->cluster.threads, "Cores to use, 0 for all")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_option("--device", flags->cluster.device, "cpu or cuda:N")->capture_default_str();
  command->add_option("--work-dir", flags->cluster.work_folder, "Parent of the temporary folder")
      ->type_name("DIR");
  command->add_flag("--force", flags->force, "Replace an existing output, atomically");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([flags, &chosen] { chosen = [flags] { return RunExport(*flags); }; });
}

}  // namespace gradq
