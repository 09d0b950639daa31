#include "services/coordinator/report.h"

#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "google/protobuf/util/time_util.h"
#include "services/coordinator/admission.h"

namespace gradq {
namespace {

using google::protobuf::util::TimeUtil;
using nlohmann::json;

json ToJson(const google::protobuf::Map<std::string, std::string>& map) {
  json object = json::object();
  for (const auto& [key, value] : map) object[key] = value;
  return object;
}

json TimeOrNull(bool present, const google::protobuf::Timestamp& time) {
  return present ? json(TimeUtil::ToString(time)) : json(nullptr);
}

json ValidationJson(const v1::Validation& validation) {
  json object = {{"state", v1::Validation::State_Name(validation.state())},
                 {"message", validation.message()}};
  if (validation.has_comparison()) {
    const v1::Comparison& comparison = validation.comparison();
    object["perplexity"] = comparison.perplexity();
    object["reference_perplexity"] = comparison.reference_perplexity();
    object["kl"] = comparison.kl();
    object["top1_agreement"] = comparison.top1_agreement();
    object["tokens"] = comparison.tokens();
    object["seconds"] = comparison.seconds();
  }
  return object;
}

json WorkersJson(const std::vector<v1::Task>& tasks, const std::vector<v1::Worker>& workers) {
  // By name: a worker that registered again is one line.
  std::map<std::string, json> lines;
  for (const v1::Task& task : tasks) {
    if (task.worker().empty()) continue;
    json& line = lines[task.worker()];
    line["name"] = task.worker();
    line["tasks"] = line.value("tasks", 0) + 1;
    line["compute_seconds"] = line.value("compute_seconds", 0.0) + task.result().compute_seconds();
  }
  for (const v1::Worker& worker : workers) {
    for (auto& [name, line] : lines) {
      if (worker.name() != name && !worker.name().ends_with("/" + name)) continue;
      line["advertise"] = worker.advertise();
      line["device"] = worker.device();
      line["threads"] = worker.threads();
      line["memory_bytes"] = worker.memory_bytes();
      line["numerics_class"] = worker.numerics_class();
    }
  }
  json array = json::array();
  for (const auto& [name, line] : lines) array.push_back(line);
  return array;
}

std::string_view DecisionName(v1::RoundPlan::Decision decision) {
  switch (decision) {
    case v1::RoundPlan::THRESHOLD:
      return "threshold";
    case v1::RoundPlan::SHARES:
      return "shares";
    case v1::RoundPlan::SHRINKAGE:
      return "shrinkage";
    case v1::RoundPlan::WIDTHS:
      return "widths";
    default:
      return "none";
  }
}

// What each round decided, and from which losses.
json DecisionsJson(const v1::Job& job, const std::vector<v1::Task>& tasks) {
  json array = json::array();
  for (const v1::Task& task : tasks) {
    if (!task.result().has_decision()) continue;
    const int round = task.spec().decide().round();
    if (round >= job.plan().rounds_size()) continue;
    const v1::Decision& decision = task.result().decision();
    json entry = {{"round", round},
                  {"purpose", job.plan().rounds(round).purpose()},
                  {"decision", std::string(DecisionName(job.plan().rounds(round).decision()))},
                  {"node_loss", json(std::vector<double>(decision.node_loss().begin(),
                                                         decision.node_loss().end()))}};
    for (const auto& [name, number] : decision.numbers()) entry["numbers"][name] = number;
    for (const v1::LinearDecision& linear : decision.linears()) {
      json& line = entry["linears"][linear.linear()];
      if (linear.has_threshold()) line["threshold"] = linear.threshold();
      if (linear.has_outlier_fraction()) line["outlier_fraction"] = linear.outlier_fraction();
      if (linear.has_variant()) line["variant"] = linear.variant();
    }
    array.push_back(std::move(entry));
  }
  return array;
}

json PathChecksJson(const v1::JobProgress& progress) {
  json array = json::array();
  for (const v1::PathCheck& check : progress.path_checks()) {
    array.push_back({{"round", check.round()},
                     {"purpose", check.purpose()},
                     {"integral", check.integral()},
                     {"measured", check.measured()}});
  }
  return array;
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

}  // namespace

std::string RecipeJson(const v1::JobRecord& record) {
  const v1::JobSpec& spec = record.job().spec();
  const v1::Recipe& recipe = spec.recipe();
  json object = {
      {"method", recipe.method()},
      {"objective", recipe.objective()},
      {"groups", recipe.groups()},
      {"options", ToJson(recipe.options())},
      {"outliers", recipe.outliers()},
      {"outlier_options", ToJson(recipe.outlier_options())},
      {"sequences", spec.sequences()},
      {"length", spec.length()},
      {"chunk_sequences", spec.chunk_sequences()},
      {"compute_dtype", spec.compute_dtype()},
      {"calibration_sha256", spec.calibration_blob()},
      {"calibration_tokens_sha256", std::string(TokenFileDigest(record.calibration_tokens()))},
      {"model_digest", record.model_digest()},
  };
  // One of both says how wide the codes are.
  object["bits"] = recipe.has_average_bits() ? json(nullptr) : json(recipe.bits());
  object["average_bits"] = recipe.has_average_bits() ? json(recipe.average_bits()) : json(nullptr);
  if (recipe.has_average_bits()) object["free_widths"] = recipe.free_widths();
  object["shuffle_seed"] = spec.has_shuffle_seed() ? json(spec.shuffle_seed()) : json(nullptr);
  return object.dump();
}

std::string ReportJson(const v1::Job& job, const std::vector<v1::Task>& tasks,
                       const std::vector<v1::Worker>& workers) {
  const v1::JobProgress& progress = job.progress();
  json object = {
      {"job", job.name()},
      {"state", v1::Job::State_Name(job.state())},
      {"model", job.spec().model()},
      {"artifact_digest", job.artifact_digest()},
      {"artifact_bytes", progress.artifact_bytes()},
      {"original_bytes", progress.original_bytes()},
      {"average_bits", progress.average_bits()},
      {"coordinator_host", HostName()},
      {"create_time", TimeOrNull(job.has_create_time(), job.create_time())},
      {"start_time", TimeOrNull(job.has_start_time(), job.start_time())},
      {"end_time", TimeOrNull(job.has_end_time(), job.end_time())},
      {"idle_seconds", progress.idle_seconds()},
      {"stages", job.plan().first_block_size()},
      {"workers", WorkersJson(tasks, workers)},
      {"validation", ValidationJson(job.validation())},
      {"decisions", DecisionsJson(job, tasks)},
      {"path_checks", PathChecksJson(progress)},
  };
  if (!job.spec().source_job().empty()) object["source_job"] = job.spec().source_job();
  object["shrinkage"] = progress.has_shrinkage() ? json(progress.shrinkage()) : json(nullptr);
  if (job.has_end_time()) {
    object["seconds"] =
        static_cast<double>(TimeUtil::DurationToMilliseconds(job.end_time() - job.create_time())) /
        1e3;
  }
  object["predicted_loss_increase"] = progress.has_predicted_loss_increase()
                                          ? json(progress.predicted_loss_increase())
                                          : json(nullptr);
  object["calibration_loss"] =
      progress.has_calibration_loss() ? json(progress.calibration_loss()) : json(nullptr);
  json phases = json::object();
  for (const auto& [name, seconds] : progress.phase_seconds()) phases[name] = seconds;
  object["phase_seconds"] = std::move(phases);
  return object.dump(2) + "\n";
}

}  // namespace gradq
