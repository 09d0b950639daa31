#include "services/cli/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"
#include "lib/base/strings.h"
#include "services/cli/progress.h"

namespace gradq {
namespace {

using nlohmann::ordered_json;

ordered_json ToJson(const v1::Comparison& comparison) {
  return {{"perplexity", comparison.perplexity()},
          {"reference_perplexity", comparison.reference_perplexity()},
          {"kl", comparison.kl()},
          {"top1_agreement", comparison.top1_agreement()},
          {"tokens", comparison.tokens()},
          {"seconds", comparison.seconds()}};
}

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string Row(const std::string& name, const std::string& value) {
  return absl::StrFormat("  %-31s %s\n", name, value);
}

std::string ShrinkageText(double shrinkage) {
  if (shrinkage == 1) return "none: it did not lower the loss on the windows held out";
  return absl::StrFormat("shrinkage %g, by the loss on the windows held out", shrinkage);
}

// Above it the nodes are too few for the way.
constexpr double kPathTolerance = 0.005;

// "integral 0.1690 nats, measured 0.1691 (0.06 %)"
std::string PathCheckText(const v1::PathCheck& check) {
  const double relative =
      check.measured() == 0 ? 0 : std::fabs(check.integral() / check.measured() - 1);
  return absl::StrFormat("integral %.4f nats, measured %.4f (%.2f %%%s)", check.integral(),
                         check.measured(), 100 * relative,
                         relative > kPathTolerance ? "; try more --nodes" : "");
}

}  // namespace

std::string FormatBytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (; bytes >= 1024 && unit < 4; ++unit) bytes /= 1024;
  return unit == 0 ? absl::StrFormat("%.0f B", bytes)
                   : absl::StrFormat("%.2f %s", bytes, kUnits[unit]);
}

std::string ComparisonJson(const v1::Comparison& comparison) { return ToJson(comparison).dump(); }

absl::Duration JobDuration(const v1::Job& job) {
  return ToTime(job.end_time()) - ToTime(job.create_time());
}

std::string QuantizeJson(const v1::Job& job, double outlier_fraction) {
  const v1::JobProgress& progress = job.progress();
  ordered_json phases = ordered_json::object();
  for (const auto& [name, seconds] :
       std::map(progress.phase_seconds().begin(), progress.phase_seconds().end())) {
    phases[name] = seconds;
  }
  ordered_json result = {{"job", job.name()},
                         {"output", job.artifact_path()},
                         {"seconds", absl::ToDoubleSeconds(JobDuration(job))},
                         {"phases", phases},
                         {"predicted_loss_increase", nullptr},
                         {"average_bits", progress.average_bits()},
                         {"bytes", progress.artifact_bytes()},
                         {"evaluation", nullptr},
                         {"path_checks", ordered_json::array()},
                         {"shrinkage", nullptr},
                         {"outlier_fraction", outlier_fraction}};
  if (progress.has_predicted_loss_increase())
    result["predicted_loss_increase"] = progress.predicted_loss_increase();
  if (job.validation().state() == v1::Validation::DONE)
    result["evaluation"] = ToJson(job.validation().comparison());
  for (const v1::PathCheck& check : progress.path_checks()) {
    result["path_checks"].push_back({{"round", check.round()},
                                     {"purpose", check.purpose()},
                                     {"integral", check.integral()},
                                     {"measured", check.measured()}});
  }
  if (progress.has_shrinkage()) result["shrinkage"] = progress.shrinkage();
  return result.dump();
}

std::string ResultTable(const v1::Job& job, double outlier_fraction) {
  const v1::JobProgress& progress = job.progress();
  std::string table;
  table += Row("average bits per weight", absl::StrFormat("%.3f", progress.average_bits()));
  table += Row("bytes", StrCat(FormatBytes(static_cast<double>(progress.original_bytes())), " -> ",
                               FormatBytes(static_cast<double>(progress.artifact_bytes()))));
  if (outlier_fraction > 0) {
    table += Row("outliers", absl::StrFormat("%.3f %% of the weights, in fp16 beside the codes",
                                             100 * outlier_fraction));
  }
  if (progress.has_shrinkage()) table += Row("coupling", ShrinkageText(progress.shrinkage()));
  for (const v1::PathCheck& check : progress.path_checks()) {
    table += Row(StrCat("loss path, round ", check.round() + 1, ", ", check.purpose()),
                 PathCheckText(check));
  }
  if (progress.has_predicted_loss_increase()) {
    table += Row("loss increase, predicted", absl::StrFormat("%.4f nats per token (calibration)",
                                                             progress.predicted_loss_increase()));
  }
  const v1::Validation& validation = job.validation();
  if (validation.state() == v1::Validation::DONE) {
    const v1::Comparison& comparison = validation.comparison();
    table +=
        Row("loss increase, measured",
            absl::StrFormat("%.4f nats per token (evaluation)",
                            std::log(comparison.perplexity() / comparison.reference_perplexity())));
    table += Row("perplexity", absl::StrFormat("%.4f -> %.4f", comparison.reference_perplexity(),
                                               comparison.perplexity()));
    table += Row("KL divergence", absl::StrFormat("%.5f nats per token", comparison.kl()));
    table += Row("top-1 agreement", absl::StrFormat("%.2f %%", 100 * comparison.top1_agreement()));
    table += Row("evaluated tokens", StrCat(comparison.tokens()));
  } else if (validation.state() == v1::Validation::SKIPPED ||
             validation.state() == v1::Validation::FAILED) {
    table += Row("evaluation",
                 StrCat(validation.state() == v1::Validation::SKIPPED ? "skipped: " : "failed: ",
                        validation.message()));
  }
  return table;
}

std::string QuantizeTable(const v1::Job& job, absl::Duration wall, double idle_share,
                          double outlier_fraction) {
  const v1::JobProgress& progress = job.progress();
  std::string table = StrCat(job.artifact_path(), "\n", ResultTable(job, outlier_fraction));
  constexpr const char* kPhases[] = {"queue", "forward",  "backward", "score",
                                     "solve", "assemble", "validate"};
  for (const char* phase : kPhases) {
    const auto seconds = progress.phase_seconds().find(phase);
    if (seconds == progress.phase_seconds().end()) continue;
    table += Row(StrCat("seconds in ", phase), absl::StrFormat("%.2f", seconds->second));
  }
  table +=
      Row("seconds in all", absl::StrFormat("%.2f (phases overlap)", absl::ToDoubleSeconds(wall)));
  table +=
      Row("no process computing", absl::StrFormat("%.1f %% of the wall time", 100 * idle_share));
  return table;
}

std::string FrontierTable(const std::string& job, const v1::Frontier& frontier) {
  std::string table = absl::StrFormat(
      "%s: widths per linear between %.4f and %.4f bits per weight\n"
      "  %8s  %10s  %10s  %6s %6s %6s\n",
      job, frontier.least_bits(), frontier.most_bits(), "bits", "predicted", "measured", "2-bit",
      "3-bit", "4-bit");
  for (const v1::Frontier::Point& point : frontier.points()) {
    const auto linears = [&](int bits) {
      const auto it = point.linears_by_bits().find(bits);
      return it == point.linears_by_bits().end() ? 0 : it->second;
    };
    const std::string measured = point.has_measured_loss_increase()
                                     ? absl::StrFormat("%.4f", point.measured_loss_increase())
                                     : "";
    const std::string made =
        point.job().empty() ? "" : StrCat("  <- ", point.job() == job ? "this job" : point.job());
    table += absl::StrFormat("  %8.4f  %10.4f  %10s  %6d %6d %6d%s\n", point.average_bits(),
                             point.predicted_loss_increase(), measured, linears(2), linears(3),
                             linears(4), made);
  }
  return table;
}

std::string FrontierJson(const std::string& job, const v1::Frontier& frontier) {
  ordered_json points = ordered_json::array();
  for (const v1::Frontier::Point& point : frontier.points()) {
    ordered_json linears = ordered_json::object();
    for (const auto& [bits, count] :
         std::map(point.linears_by_bits().begin(), point.linears_by_bits().end())) {
      linears[std::to_string(bits)] = count;
    }
    ordered_json entry = {{"average_bits", point.average_bits()},
                          {"predicted_loss_increase", point.predicted_loss_increase()},
                          {"measured_loss_increase", nullptr},
                          {"job", nullptr},
                          {"linears", std::move(linears)}};
    if (point.has_measured_loss_increase())
      entry["measured_loss_increase"] = point.measured_loss_increase();
    if (!point.job().empty()) entry["job"] = point.job();
    points.push_back(std::move(entry));
  }
  return ordered_json{{"job", job},
                      {"least_bits", frontier.least_bits()},
                      {"most_bits", frontier.most_bits()},
                      {"points", std::move(points)}}
      .dump();
}

double OutlierFraction(const Inspection& inspection) {
  double apart = 0, weights = 0;
  for (const InspectedLinear& linear : inspection.linears) {
    const auto count = static_cast<double>(linear.out_features * linear.in_features);
    weights += count;
    apart += linear.outlier_fraction * count;
  }
  return weights > 0 ? apart / weights : 0;
}

double IdleShare(const std::vector<v1::Task>& tasks, absl::Time start, absl::Time end) {
  if (end <= start) return 0;
  std::vector<std::pair<absl::Time, absl::Time>> busy;
  for (const v1::Task& task : tasks) {
    const bool numeric = !task.spec().has_decide() && !task.spec().has_assemble();
    if (!numeric || !task.has_start_time() || !task.has_end_time()) continue;
    busy.emplace_back(ToTime(task.start_time()), ToTime(task.end_time()));
  }
  std::sort(busy.begin(), busy.end());
  absl::Duration covered = absl::ZeroDuration();
  absl::Time reached = start;
  for (const auto& [from, to] : busy) {
    const absl::Time begin = std::max(from, reached);
    const absl::Time finish = std::min(to, end);
    if (finish <= begin) continue;
    covered += finish - begin;
    reached = finish;
  }
  return 1 - absl::FDivDuration(covered, end - start);
}

}  // namespace gradq
