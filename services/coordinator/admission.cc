#include "services/coordinator/admission.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/options.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/program.h"
#include "lib/catalog/quantizers.h"
#include "lib/catalog/recipe.h"
#include "lib/catalog/statistics.h"
#include "lib/jobs/plan_messages.h"
#include "lib/tokenizer/tokenizer.h"
#include "services/coordinator/windows.h"

namespace gradq {
namespace {

constexpr std::string_view kTokenPrefix = "tokens-";
constexpr int64_t kMaxTextBytes = int64_t{1} << 30;
constexpr int64_t kMaxTokenizerBytes = int64_t{256} << 20;
// Beyond the estimate: metadata, tokenizer files, the job store's log.
constexpr int64_t kDiskMargin = int64_t{32} << 20;

absl::Status CheckRange(std::string_view what, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(what, " outside ", least, "..", most, ": ", value));
}

// Zero and empty mean the default (job.proto).
void FillDefaults(v1::JobSpec* spec) {
  const auto fill = [](auto value, auto standard) { return value == 0 ? standard : value; };
  spec->set_sequences(fill(spec->sequences(), 64));
  spec->set_length(fill(spec->length(), 512));
  spec->set_chunk_sequences(fill(spec->chunk_sequences(), 4));
  spec->set_validate_timeout_s(fill(spec->validate_timeout_s(), 600));
  if (spec->compute_dtype().empty()) spec->set_compute_dtype("float32");
  v1::Recipe* recipe = spec->mutable_recipe();
  if (recipe->method().empty()) recipe->set_method("lnq");
  recipe->set_bits(fill(recipe->bits(), 3));
  if (recipe->objective().empty()) recipe->set_objective("guided");
  recipe->set_groups(fill(recipe->groups(), 4));
  if (recipe->outliers().empty()) recipe->set_outliers("none");
}

absl::Status CheckWaiting(const v1::JobSpec& spec) {
  GRADQ_RETURN_IF_ERROR(
      CheckRange("validate_timeout_s", spec.validate_timeout_s(), 1, 7 * 24 * 3600));
  return CheckRange("evaluation_sequences", spec.evaluation_sequences(), 0, 1 << 30);
}

absl::Status CheckNumbers(const v1::JobSpec& spec) {
  GRADQ_RETURN_IF_ERROR(CheckRange("sequences", spec.sequences(), 1, 1 << 20));
  GRADQ_RETURN_IF_ERROR(CheckRange("length", spec.length(), 2, 1 << 20));
  GRADQ_RETURN_IF_ERROR(CheckRange("chunk_sequences", spec.chunk_sequences(), 1, 1 << 20));
  GRADQ_RETURN_IF_ERROR(CheckRange("stages", spec.stages(), 0, 1 << 16));
  GRADQ_RETURN_IF_ERROR(CheckWaiting(spec));
  GRADQ_RETURN_IF_ERROR(CheckRange("groups", spec.recipe().groups(), 1, 1 << 20));
  if (spec.compute_dtype() != "float32" && spec.compute_dtype() != "bfloat16") {
    return absl::InvalidArgumentError(
        StrCat("compute_dtype is not float32 or bfloat16: ", spec.compute_dtype()));
  }
  return absl::OkStatus();
}

// Replaces the recipe's options by the full sets.
absl::StatusOr<Recipe> FillOptions(v1::Recipe* recipe) {
  if (recipe->outliers() == "none" && !recipe->outlier_options().empty()) {
    return absl::InvalidArgumentError(StrCat("outlier option without an outlier policy: ",
                                             recipe->outlier_options().begin()->first));
  }
  GRADQ_ASSIGN_OR_RETURN(Recipe given, RecipeOf(*recipe));
  GRADQ_ASSIGN_OR_RETURN(Recipe resolved, ResolveRecipe(std::move(given)));
  recipe->mutable_options()->clear();
  for (const auto& [name, value] : resolved.options) (*recipe->mutable_options())[name] = value;
  recipe->mutable_outlier_options()->clear();
  for (const auto& [name, value] : resolved.outlier_options) {
    (*recipe->mutable_outlier_options())[name] = value;
  }
  return resolved;
}

// What of the recipe reads gradients, for a message; empty: nothing.
std::string NeedsGradients(const Recipe& recipe) {
  const auto first = [](const std::vector<std::string_view>& needed) -> std::string_view {
    for (const std::string_view name : needed) {
      const auto row = FindStatistic(name);
      if (row.ok() && (*row)->needs_gradient) return (*row)->name;
    }
    return {};
  };
  const auto policy = FindOutlierPolicy(recipe.outliers);
  if (policy.ok()) {
    const std::string_view need = first((*policy)->needs(recipe.outlier_options));
    if (!need.empty()) return StrCat("outlier policy ", recipe.outliers, " (", need, ")");
    if (recipe.outliers == "pqi") return "outlier policy pqi (weight_gradient)";
  }
  const auto row = FindQuantizer(recipe.method);
  if (!row.ok()) return "";
  const std::string_view need = first((*row)->needs(recipe.objective, recipe.options));
  if (need.empty() && recipe.average_bits.has_value()) {
    return StrCat("the choice of widths for average bits (", kFisherBlocks, ")");
  }
  if (need.empty()) return "";
  if (!(*row)->uses_objective) return StrCat("method ", recipe.method, " (", need, ")");
  return StrCat("method ", recipe.method, " with objective ", ObjectiveName(recipe.objective), " (",
                need, ")");
}

// What the recipe and the calibration set refuse together.
absl::Status CheckProgram(const v1::JobSpec& spec, const Recipe& recipe) {
  GRADQ_ASSIGN_OR_RETURN(const std::vector<Round> program, MakeProgram(recipe, spec.sequences()));
  const bool backward = std::any_of(program.begin(), program.end(),
                                    [](const Round& round) { return round.backward; });
  if (!spec.forward_only() || !backward) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("a forward-only job takes no gradients: needed by ", NeedsGradients(recipe)));
}

struct FolderBytes {
  int64_t weights = 0;
  int64_t small_files = 0;  // configuration and tokenizer
};

// What an artifact replaces and copies.
absl::StatusOr<FolderBytes> MeasureFolder(const Checkpoint& checkpoint) {
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, checkpoint.folder().List());
  const std::vector<std::string>& weights = checkpoint.weight_files();
  FolderBytes bytes;
  for (const FolderEntry& entry : entries) {
    if (std::find(weights.begin(), weights.end(), entry.name) != weights.end()) {
      bytes.weights += entry.size;
    } else if (entry.name.ends_with(".json") || entry.name.ends_with(".model")) {
      bytes.small_files += entry.size;
    }
  }
  return bytes;
}

// Identity of the bytes as far as it can be told without reading them.
std::string WeightsStamp(const Checkpoint& checkpoint) {
  std::string stamp = checkpoint.layout_digest();
  for (const std::string& name : checkpoint.weight_files()) {
    struct stat info {};
    const std::string path = StrCat(checkpoint.folder().path(), "/", name);
    if (stat(path.c_str(), &info) != 0) continue;
    stamp += StrCat(" ", info.st_dev, ":", info.st_ino, ":", info.st_size, ":", info.st_mtim.tv_sec,
                    ".", info.st_mtim.tv_nsec);
  }
  return stamp;
}

absl::Status CheckRoom(const std::string& folder, int64_t needed) {
  GRADQ_ASSIGN_OR_RETURN(const int64_t free, FreeDiskBytes(folder));
  if (free >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(StrCat("not enough room on the coordinator's disk: ", folder,
                                             ", ", needed, " bytes needed, ", free, " free"));
}

}  // namespace

std::string TokenFileName(std::string_view sha256) { return StrCat(kTokenPrefix, sha256); }

std::string_view TokenFileDigest(std::string_view file) {
  if (!file.starts_with(kTokenPrefix)) return {};
  file.remove_prefix(kTokenPrefix.size());
  return IsSha256Hex(file) ? file : std::string_view();
}

Admission::Admission(PathRoot model_root, PathRoot output_root, std::string data_dir,
                     const BlobStore* blobs)
    : model_root_(std::move(model_root)),
      output_root_(std::move(output_root)),
      data_dir_(std::move(data_dir)),
      blobs_(blobs) {}

absl::StatusOr<AdmittedJob> Admission::Check(const v1::JobSpec& spec, const Fleet& fleet,
                                             bool needs_text) const {
  if (!spec.source_job().empty()) {
    return absl::InvalidArgumentError(
        "a job with source_job computes nothing that could be planned");
  }
  AdmittedJob admitted;
  NewJob& job = admitted.job;
  PlanInputs inputs;
  // Cheap checks first: a typing error in an option must not wait for the weights to be read.
  GRADQ_ASSIGN_OR_RETURN(job.spec, ResolveSpec(spec, &inputs));
  job.model_path = job.spec.model();
  job.output_path = job.spec.output();
  GRADQ_RETURN_IF_ERROR(CheckOutput(job.spec));
  GRADQ_ASSIGN_OR_RETURN(auto folder, OpenLocalFolder(job.model_path));
  GRADQ_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(std::move(folder)));
  if (checkpoint->quantized()) {
    return absl::FailedPreconditionError(StrCat("model is already quantized: ", job.model_path));
  }
  admitted.geometry = checkpoint->geometry();
  const int64_t positions = admitted.geometry.max_positions;
  if (positions > 0 && job.spec.length() > positions) {
    return absl::InvalidArgumentError(StrCat(
        "length above the model's max_position_embeddings: ", job.spec.length(), ", ", positions));
  }
  job.config_json = checkpoint->config_json();
  job.model_digest = checkpoint->layout_digest();
  GRADQ_ASSIGN_OR_RETURN(const FolderBytes bytes, MeasureFolder(*checkpoint));
  job.original_bytes = bytes.weights + bytes.small_files;
  inputs.small_files_bytes = bytes.small_files;

  inputs.geometry = admitted.geometry;
  GRADQ_ASSIGN_OR_RETURN(const TensorInfo embedding, checkpoint->Find("model.embed_tokens.weight"));
  inputs.source_bytes = DTypeSize(embedding.dtype);
  inputs.sequences = job.spec.sequences();
  inputs.length = job.spec.length();
  inputs.chunk_sequences = job.spec.chunk_sequences();
  inputs.stages = job.spec.stages();
  inputs.workers = std::max(1, fleet.workers);
  inputs.worker_memory_bytes = fleet.smallest_memory_bytes;
  inputs.compute_bytes = job.spec.compute_dtype() == "bfloat16" ? 2 : 4;
  GRADQ_ASSIGN_OR_RETURN(admitted.plan, MakePlan(inputs));

  if (needs_text && job.spec.calibration_blob().empty()) {
    return absl::InvalidArgumentError("calibration_blob is empty");
  }
  if (!job.spec.calibration_blob().empty()) {
    GRADQ_RETURN_IF_ERROR(CutTexts(*checkpoint, job.spec, &admitted));
  }
  GRADQ_RETURN_IF_ERROR(CheckDisk(admitted));
  GRADQ_RETURN_IF_ERROR(CheckWeights(*checkpoint));
  return admitted;
}

absl::StatusOr<v1::JobSpec> Admission::ResolvePoint(v1::JobSpec spec,
                                                    const v1::JobRecord& source) const {
  const v1::JobSpec& made = source.job().spec();
  if (spec.evaluation_blob().empty()) {
    spec.set_evaluation_blob(made.evaluation_blob());
    spec.set_evaluation_sequences(made.evaluation_sequences());
  }
  if (spec.validate_timeout_s() == 0) spec.set_validate_timeout_s(made.validate_timeout_s());
  GRADQ_RETURN_IF_ERROR(CheckWaiting(spec));
  if (!spec.output().empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_output(), output_root_.ResolveNew(spec.output()));
  }
  return spec;
}

absl::StatusOr<AdmittedJob> Admission::CheckPoint(const v1::JobSpec& spec,
                                                  const v1::JobRecord& source) const {
  AdmittedJob admitted;
  NewJob& job = admitted.job;
  GRADQ_ASSIGN_OR_RETURN(job.spec, ResolvePoint(spec, source));
  job.output_path = job.spec.output();
  v1::JobSpec whole = source.job().spec();
  whole.set_output(job.spec.output());
  whole.set_force(job.spec.force());
  GRADQ_RETURN_IF_ERROR(CheckOutput(whole));
  GRADQ_ASSIGN_OR_RETURN(auto folder, OpenLocalFolder(source.model_path()));
  GRADQ_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(std::move(folder)));
  if (checkpoint->layout_digest() != source.model_digest()) {
    return absl::FailedPreconditionError(
        StrCat("model has changed since ", spec.source_job(), ": ", source.model_path()));
  }
  admitted.geometry = checkpoint->geometry();
  // What calibrated the shards is part of the artifact's identity.
  job.calibration_tokens = source.calibration_tokens();
  whole.clear_calibration_blob();
  whole.set_evaluation_blob(job.spec.evaluation_blob());
  whole.set_evaluation_sequences(job.spec.evaluation_sequences());
  if (!whole.evaluation_blob().empty()) {
    GRADQ_RETURN_IF_ERROR(CutTexts(*checkpoint, whole, &admitted));
  }
  // No point is larger than the original; its shards lie here already.
  admitted.plan.artifact_bytes = source.job().progress().original_bytes();
  GRADQ_RETURN_IF_ERROR(CheckDisk(admitted));
  return admitted;
}

absl::StatusOr<v1::JobSpec> Admission::ResolveSpec(v1::JobSpec spec, PlanInputs* inputs) const {
  FillDefaults(&spec);
  GRADQ_RETURN_IF_ERROR(CheckNumbers(spec));
  GRADQ_ASSIGN_OR_RETURN(const Recipe recipe, FillOptions(spec.mutable_recipe()));
  GRADQ_RETURN_IF_ERROR(CheckProgram(spec, recipe));
  inputs->recipe = recipe;
  GRADQ_ASSIGN_OR_RETURN(*spec.mutable_model(), model_root_.ResolveNew(spec.model()));
  if (!spec.output().empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_output(), output_root_.ResolveNew(spec.output()));
  }
  return spec;
}

absl::StatusOr<v1::JobSpec> Admission::Resolve(const v1::JobSpec& spec) const {
  PlanInputs inputs;
  return ResolveSpec(spec, &inputs);
}

absl::Status Admission::CheckOutput(const v1::JobSpec& spec) const {
  const std::string& output = spec.output();
  if (output.empty()) return absl::OkStatus();
  // A replaced folder is removed: never one that holds the model or the coordinator's own state.
  if (IsWithin(spec.model(), output) || IsWithin(data_dir_, output)) {
    return absl::InvalidArgumentError(
        StrCat("output holds the model or the coordinator's data: ", output));
  }
  if (IsWithin(output, data_dir_)) {
    return absl::InvalidArgumentError(
        StrCat("output lies in the coordinator's data folder: ", output));
  }
  const std::string parent = ExistingAncestor(output);
  if (parent == output) {
    if (!spec.force()) return absl::AlreadyExistsError(StrCat("output exists: ", output));
    GRADQ_RETURN_IF_ERROR(OpenLocalFolder(output).status());
    return absl::OkStatus();
  }
  if (PathExists(output)) return absl::AlreadyExistsError(StrCat("output exists: ", output));
  GRADQ_RETURN_IF_ERROR(OpenLocalFolder(parent).status());
  if (access(parent.c_str(), W_OK | X_OK) != 0) {
    return ErrnoToStatus(errno, "cannot write the output's folder", parent);
  }
  return absl::OkStatus();
}

absl::Status Admission::RecheckOutput(const std::string& output) const {
  GRADQ_ASSIGN_OR_RETURN(const std::string now, output_root_.ResolveNew(output));
  if (now == output) return absl::OkStatus();
  return absl::PermissionDeniedError(
      StrCat("output has become a link to another place: ", output, ", ", now));
}

absl::Status Admission::CutTexts(const Checkpoint& checkpoint, const v1::JobSpec& spec,
                                 AdmittedJob* admitted) const {
  GRADQ_ASSIGN_OR_RETURN(const std::string json,
                         checkpoint.folder().ReadAll("tokenizer.json", kMaxTokenizerBytes));
  auto tokenizer = Tokenizer::Open(json);
  if (!tokenizer.ok()) {
    return absl::Status(
        tokenizer.status().code(),
        StrCat(checkpoint.folder().path(), "/tokenizer.json: ", tokenizer.status().message()));
  }
  WindowRequest request;
  request.length = spec.length();
  request.vocab_size = admitted->geometry.vocab_size;
  const auto cut = [&](const std::string& blob) -> absl::StatusOr<Windows> {
    auto text = blobs_->Read(blob, kMaxTextBytes);
    if (!text.ok()) {
      return absl::Status(text.status().code(),
                          StrCat(request.what, ": ", text.status().message()));
    }
    return MakeWindows(**tokenizer, *text, request);
  };
  if (!spec.calibration_blob().empty()) {
    request.what = "calibration text";
    request.windows = spec.sequences();
    if (spec.has_shuffle_seed()) request.shuffle_seed = spec.shuffle_seed();
    GRADQ_ASSIGN_OR_RETURN(Windows calibration, cut(spec.calibration_blob()));
    admitted->calibration_tokens = std::move(calibration.tokens);
  }

  if (spec.evaluation_blob().empty()) return absl::OkStatus();
  request.what = "evaluation text";
  request.windows = spec.evaluation_sequences();
  request.shuffle_seed.reset();
  GRADQ_ASSIGN_OR_RETURN(Windows evaluation, cut(spec.evaluation_blob()));
  admitted->evaluation_tokens = std::move(evaluation.tokens);
  admitted->job.evaluation_sequences = static_cast<int>(evaluation.windows);
  return absl::OkStatus();
}

absl::Status Admission::CheckDisk(const AdmittedJob& admitted) const {
  // Shards first lie in the data folder; the artifact is assembled beside its final place.
  const int64_t artifact = admitted.plan.artifact_bytes;
  const int64_t shards = admitted.plan.shard_bytes;
  const auto tokens =
      static_cast<int64_t>(admitted.calibration_tokens.size() + admitted.evaluation_tokens.size());
  const std::string output = admitted.job.spec.output();
  const std::string beside = output.empty() ? data_dir_ : ExistingAncestor(output);
  struct stat data_info {
  }, output_info{};
  const bool same_disk = stat(data_dir_.c_str(), &data_info) == 0 &&
                         stat(beside.c_str(), &output_info) == 0 &&
                         data_info.st_dev == output_info.st_dev;
  const int64_t in_data = shards + tokens + kDiskMargin;
  GRADQ_RETURN_IF_ERROR(CheckRoom(data_dir_, same_disk ? in_data + artifact : in_data));
  return same_disk ? absl::OkStatus() : CheckRoom(beside, artifact + kDiskMargin);
}

absl::Status Admission::CheckWeights(const Checkpoint& checkpoint) const {
  const std::string stamp = WeightsStamp(checkpoint);
  {
    const std::lock_guard lock(mutex_);
    if (finite_.contains(stamp)) return absl::OkStatus();
  }
  GRADQ_RETURN_IF_ERROR(CheckFinite(checkpoint));
  const std::lock_guard lock(mutex_);
  finite_.insert(stamp);
  return absl::OkStatus();
}

v1::JobPlan ToProto(const AdmittedJob& admitted) {
  const v1::JobSpec& spec = admitted.job.spec;
  v1::JobPlan plan;
  for (const int block : admitted.plan.first_block) plan.add_first_block(block);
  plan.set_blocks(static_cast<int>(admitted.geometry.blocks));
  plan.set_chunks(admitted.plan.chunks);
  plan.set_chunk_sequences(spec.chunk_sequences());
  plan.set_sequences(spec.sequences());
  plan.set_length(spec.length());
  for (const LinearShape& linear : LinearsOf(admitted.geometry)) plan.add_linears(linear.name);
  for (const std::string& statistic : admitted.plan.statistics) plan.add_statistics(statistic);
  plan.set_needs_backward(admitted.plan.needs_backward);
  for (const Round& round : admitted.plan.rounds) *plan.add_rounds() = MessageOf(round);
  plan.set_worker_memory_bytes(admitted.plan.worker_memory_bytes);
  plan.set_disk_bytes(admitted.plan.spool_bytes + admitted.plan.shard_bytes +
                      admitted.plan.artifact_bytes);
  return plan;
}

v1::InferenceMemory ToProto(const InferenceMemory& memory) {
  const auto bytes = [](double count) { return static_cast<int64_t>(std::min(count, 9.0e18)); };
  v1::InferenceMemory message;
  message.set_linear_bytes(bytes(memory.linears));
  message.set_kept_bytes(bytes(memory.kept));
  message.set_cache_bytes_per_token(bytes(memory.cache_per_token));
  message.set_cache_bytes(bytes(memory.cache_window));
  message.set_scratch_bytes(bytes(memory.scratch));
  return message;
}

}  // namespace gradq
