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
  return absl::StrFormat("  %-30s %s\n", name, value);
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

std::string QuantizeJson(const v1::Job& job) {
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
                         {"evaluation", nullptr}};
  if (progress.has_predicted_loss_increase())
    result["predicted_loss_increase"] = progress.predicted_loss_increase();
  if (job.validation().state() == v1::Validation::DONE)
    result["evaluation"] = ToJson(job.validation().comparison());
  return result.dump();
}

std::string QuantizeTable(const v1::Job& job, absl::Duration wall, double idle_share) {
  const v1::JobProgress& progress = job.progress();
  std::string table = StrCat(job.artifact_path(), "\n");
  table += Row("average bits per weight", absl::StrFormat("%.3f", progress.average_bits()));
  table += Row("bytes", StrCat(FormatBytes(static_cast<double>(progress.original_bytes())), " -> ",
                               FormatBytes(static_cast<double>(progress.artifact_bytes()))));
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
  constexpr const char* kPhases[] = {"queue", "forward",  "backward",
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

double IdleShare(const std::vector<v1::Task>& tasks, absl::Time start, absl::Time end) {
  if (end <= start) return 0;
  std::vector<std::pair<absl::Time, absl::Time>> busy;
  for (const v1::Task& task : tasks) {
    const bool numeric =
        task.spec().has_run_stage() || task.spec().has_solve_linear() || task.spec().has_validate();
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
