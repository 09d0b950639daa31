#include "tests/yardstick/yardstick.h"

#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/artifact.h"
#include "lib/inference/model.h"
#include "lib/inference/scoring.h"
#include "lib/pipeline/local_run.h"
#include "lib/tokenizer/tokenizer.h"

namespace gradq {
namespace {

constexpr char kPublishedSolver[] = " --solver published";

struct Inputs {
  std::string folder;
  std::shared_ptr<const Checkpoint> checkpoint;
  nlohmann::json published;
  int64_t length = 0;
  int64_t sequences = 0;
  std::vector<int32_t> calibration;
  std::vector<int32_t> evaluation;
};

absl::StatusOr<std::vector<int32_t>> Windows(const Tokenizer& tokenizer, const std::string& path,
                                             int64_t length, int64_t count) {
  GRADQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text));
  return CutWindows(ids, length, count, tokenizer.vocab_size());
}

absl::StatusOr<Inputs> LoadInputs(const std::string& model) {
  Inputs inputs;
  inputs.folder = StrCat(GRADQ_FIXTURES, "/", model);
  GRADQ_ASSIGN_OR_RETURN(const std::string json,
                         ReadFile(StrCat(GRADQ_GOLDEN, "/yardstick/", model, ".json")));
  inputs.published = nlohmann::json::parse(json);
  inputs.sequences = inputs.published["calibration"][0];
  inputs.length = inputs.published["calibration"][1];
  GRADQ_ASSIGN_OR_RETURN(auto folder, OpenLocalFolder(inputs.folder));
  GRADQ_ASSIGN_OR_RETURN(inputs.checkpoint, Checkpoint::Open(std::move(folder)));
  GRADQ_ASSIGN_OR_RETURN(const std::string tokenizer_json,
                         ReadFile(inputs.folder + "/tokenizer.json"));
  GRADQ_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(tokenizer_json));
  GRADQ_ASSIGN_OR_RETURN(inputs.calibration, Windows(*tokenizer, inputs.folder + "/calibration.txt",
                                                     inputs.length, inputs.sequences));
  GRADQ_ASSIGN_OR_RETURN(inputs.evaluation, Windows(*tokenizer, inputs.folder + "/validation.txt",
                                                    inputs.published["evaluation"][1],
                                                    inputs.published["evaluation"][0]));
  return inputs;
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const std::string& path, ThreadPool* pool) {
  GRADQ_ASSIGN_OR_RETURN(const auto folder, OpenLocalFolder(path));
  return Model::Load(*folder, {.device = "cpu", .pool = pool});
}

// Scores what a reader of the artifact gets: the shards go through the folder on disk.
absl::StatusOr<std::pair<double, double>> ScoreArtifact(const Inputs& inputs,
                                                        const LocalResult& result,
                                                        ThreadPool* pool) {
  std::string folder = std::filesystem::temp_directory_path().string() + "/gradq-yardstick-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return ErrnoToStatus(errno, "cannot create", folder);
  absl::StatusOr<std::pair<double, double>> scores =
      [&]() -> absl::StatusOr<std::pair<double, double>> {
    ArtifactInputs artifact;
    artifact.original = inputs.checkpoint.get();
    artifact.recipe_json = "{}";
    artifact.numerics_class = "test";
    artifact.read_shard = [&](const std::string& linear) -> absl::StatusOr<std::string> {
      return result.linears.at(linear).shard;
    };
    GRADQ_RETURN_IF_ERROR(WriteArtifact(artifact, folder).status());
    GRADQ_ASSIGN_OR_RETURN(const auto model, LoadModel(folder, pool));
    GRADQ_ASSIGN_OR_RETURN(const Score evaluation,
                           ScoreWindows(*model, inputs.evaluation, inputs.length, {}));
    GRADQ_ASSIGN_OR_RETURN(const Score calibration,
                           ScoreWindows(*model, inputs.calibration, inputs.length, {}));
    return std::pair(evaluation.perplexity, calibration.perplexity);
  }();
  GRADQ_RETURN_IF_ERROR(RemoveRecursively(folder));
  return scores;
}

absl::Status FillRow(const Inputs& inputs, const nlohmann::json& published, ThreadPool* pool,
                     YardstickRow* row) {
  LocalJob job;
  job.checkpoint = inputs.checkpoint;
  job.tokens = inputs.calibration;
  job.recipe.bits = row->bits;
  job.sequences = inputs.sequences;
  job.length = inputs.length;
  job.recipe.groups = std::max(row->groups, 1);
  const std::string name = row->method.substr(0, row->method.find(' '));
  job.recipe.method = name == "rtn-g128" ? "rtn" : name.substr(0, name.find('+'));
  job.recipe.objective = name == "lnq" ? Objective::kPlain : Objective::kGuided;
  if (row->method.ends_with(kPublishedSolver)) job.recipe.options["solver"] = "published";
  GRADQ_ASSIGN_OR_RETURN(const LocalResult result, RunLocally(job, pool));
  row->solve_seconds = result.seconds.at("solve");

  double sum = 0, published_sum = 0;
  for (const auto& [linear, objective] : published["objective"].items()) {
    const double ours = result.linears.at(linear).linear.record.objective_final.value();
    const double theirs = objective[1];
    sum += ours;
    published_sum += theirs;
    if (ours / theirs > row->worst_linear_ratio) {
      row->worst_linear_ratio = ours / theirs;
      row->worst_linear = linear;
    }
  }
  if (published_sum > 0) row->objective_ratio = sum / published_sum;

  GRADQ_ASSIGN_OR_RETURN(const auto scores, ScoreArtifact(inputs, result, pool));
  row->perplexity = scores.first;
  row->published_perplexity = published["ppl"];
  if (result.predicted_loss_increase > 0) {
    row->predicted_loss_increase = result.predicted_loss_increase;
    row->measured_loss_increase = std::log(scores.second) - result.loss;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Yardstick> RunYardstick(const std::string& model, ThreadPool* pool,
                                       const std::function<bool(const YardstickRow&)>& wanted) {
  GRADQ_ASSIGN_OR_RETURN(const Inputs inputs, LoadInputs(model));
  Yardstick yardstick;
  yardstick.published_dense_perplexity = inputs.published["dense_ppl"];
  GRADQ_ASSIGN_OR_RETURN(const auto dense, LoadModel(inputs.folder, pool));
  GRADQ_ASSIGN_OR_RETURN(const Score score,
                         ScoreWindows(*dense, inputs.evaluation, inputs.length, {}));
  yardstick.dense_perplexity = score.perplexity;
  for (const nlohmann::json& published : inputs.published["rows"]) {
    const std::string method = published["method"];
    for (const char* suffix : {"", kPublishedSolver}) {
      if (*suffix != '\0' && method.substr(0, 3) != "lnq") continue;
      YardstickRow row;
      row.method = method + suffix;
      row.bits = published["bits"];
      row.groups = published["groups"];
      if (wanted && !wanted(row)) continue;
      GRADQ_RETURN_IF_ERROR(FillRow(inputs, published, pool, &row));
      yardstick.rows.push_back(std::move(row));
    }
  }
  return yardstick;
}

}  // namespace gradq
