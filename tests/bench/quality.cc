// Runs the real `gradq quantize` for every method at 2, 3 and 4 bits on a bundled model and writes
// docs/quality.md. Results are kept, one JSON file per row, so that an interrupted run goes on and
// the page can be written again without running anything (--rows '^$').
//
//   build/release/bin/quality [--model docs-llama-6m] [--rows REGEX] [--bits 2,3,4]
//                             [--results DIR] [--output docs/quality.md]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/cli/child_process.h"
#include "tests/bench/quality_rows.h"

namespace gradq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Flags {
  std::string model = "docs-llama-6m";
  std::string rows = ".*";
  std::vector<int> bits = {2, 3, 4};
  std::string results = "build/quality-results";
  std::string output = "docs/quality.md";
};

std::string Fixture(const QualityModel& model) { return StrCat(GRADQ_FIXTURES "/", model.name); }

// Runs gradq and gives the JSON object it prints. UNKNOWN with the end of its output.
absl::StatusOr<json> RunGradq(const std::vector<std::string>& arguments,
                              const std::string& folder) {
  const std::string log = StrCat(folder, "/", arguments.front(), ".log");
  GRADQ_ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start("gradq", arguments, log));
  while (process.Running()) absl::SleepFor(absl::Milliseconds(20));
  if (process.HowItEnded() != "exit code 0") return absl::UnknownError(process.LogTail());
  GRADQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(log));
  // Progress comes before it, on lines of its own.
  const size_t last = text.rfind("\n{");
  const size_t begin = last == std::string::npos ? text.find('{') : last + 1;
  json result = json::parse(begin == std::string::npos ? "" : text.substr(begin), nullptr, false);
  if (result.is_discarded()) return absl::UnknownError(StrCat("no JSON: ", process.LogTail()));
  return result;
}

std::optional<double> Number(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

// Sum over the linears; nothing where one of them has no such number.
std::optional<double> SumOverLinears(const json& inspection, const char* key) {
  double sum = 0;
  for (const json& linear : inspection.at("linears")) {
    const std::optional<double> value = Number(linear, key);
    if (!value.has_value()) return std::nullopt;
    sum += *value;
  }
  return sum;
}

// One row's run; what is kept is what gradq said, so that the page can show more of it later.
absl::StatusOr<json> Measure(const QualityModel& model, const std::vector<std::string>& flags) {
  GRADQ_ASSIGN_OR_RETURN(const WorkFolder work, WorkFolder::Create(""));
  const std::string fixture = Fixture(model), output = work.path() + "/out";
  std::vector<std::string> arguments = {"quantize",
                                        "--model",
                                        fixture,
                                        "--calibration",
                                        fixture + "/calibration.txt",
                                        "--evaluation",
                                        fixture + "/validation.txt",
                                        "--evaluation-sequences",
                                        StrCat(QualityModel::kEvaluation),
                                        "--sequences",
                                        StrCat(QualityModel::kCalibration),
                                        "--length",
                                        StrCat(model.length),
                                        "--groups",
                                        StrCat(model.groups),
                                        "--workers",
                                        "2",
                                        "--output",
                                        output,
                                        "--json"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  GRADQ_ASSIGN_OR_RETURN(const json quantize, RunGradq(arguments, work.path()));
  GRADQ_ASSIGN_OR_RETURN(json inspect, RunGradq({"inspect", output, "--json"}, work.path()));
  if (!quantize.at("evaluation").is_object()) return absl::UnknownError("no evaluation");
  return json{{"flags", flags}, {"quantize", quantize}, {"inspect", std::move(inspect)}};
}

QualityResult ResultOf(std::string name, std::string width, const json& kept) {
  const json& quantize = kept.at("quantize");
  const json& evaluation = quantize.at("evaluation");
  QualityResult result;
  result.name = std::move(name);
  result.width = std::move(width);
  result.flags = kept.at("flags").get<std::vector<std::string>>();
  result.average_bits = quantize.at("average_bits");
  result.perplexity = evaluation.at("perplexity");
  result.reference_perplexity = evaluation.at("reference_perplexity");
  result.kl = evaluation.at("kl");
  result.objective = SumOverLinears(kept.at("inspect"), "objective_final");
  result.predicted_loss_increase = Number(quantize, "predicted_loss_increase");
  result.shrinkage = Number(quantize, "shrinkage");
  for (const json& check : quantize.value("path_checks", json::array())) {
    const double measured = check.at("measured"), integral = check.at("integral");
    const double error = measured == 0 ? 0 : std::abs(integral / measured - 1);
    result.path_error = std::max(result.path_error.value_or(0), error);
  }
  result.seconds =
      quantize.at("seconds").get<double>() - quantize.at("phases").value("validate", 0.0);
  return result;
}

// All rows of one model: from the results folder where they are there, else run.
class QualityRun {
 public:
  QualityRun(const Flags& flags, const QualityModel& model, bool measure)
      : flags_(flags), model_(model), measure_(measure), wanted_(flags.rows) {}

  void All() {
    for (const QualityMethod& method : QualityMethods()) {
      for (const int bits : {2, 3, 4}) {
        std::vector<std::string> flags(method.flags.begin(), method.flags.end());
        flags.insert(flags.end(), {"--bits", StrCat(bits)});
        const bool asked =
            std::find(flags_.bits.begin(), flags_.bits.end(), bits) != flags_.bits.end();
        Row(std::string(method.name), StrCat(bits), flags, asked);
      }
    }
    for (const int low : {2, 3}) Mixed(StrCat(low), StrCat(low + 1));
    if (results_.empty()) return;
    QualityResult dense;
    dense.name = "dense";
    dense.width = "16";
    dense.average_bits = 16;
    dense.perplexity = dense.reference_perplexity = results_.front().reference_perplexity;
    results_.insert(results_.begin(), dense);
  }

  const std::vector<QualityResult>& results() const { return results_; }
  const std::vector<std::string>& failures() const { return failures_; }

 private:
  void Row(const std::string& name, const std::string& width, const std::vector<std::string>& flags,
           bool asked) {
    std::string file = StrCat(name, " ", width);
    for (char& c : file) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
    const std::string path = StrCat(flags_.results, "/", model_.name, "/", file, ".json");
    const absl::StatusOr<std::string> text = ReadFile(path);
    const json kept = text.ok() ? json::parse(*text, nullptr, false) : json();
    if (kept.is_object() && kept.value("flags", std::vector<std::string>()) == flags) {
      results_.push_back(ResultOf(name, width, kept));
      return;
    }
    if (!measure_ || !asked || !std::regex_search(name, wanted_)) return;
    absl::StatusOr<json> measured = Measure(model_, flags);
    if (measured.ok()) {
      const absl::Status written = WriteFileAtomically(path, measured->dump(1) + "\n");
      if (!written.ok()) measured = written;
    }
    if (!measured.ok()) {
      failures_.push_back(StrCat(name, ", ", width, " bits"));
      std::fprintf(stderr, "%s, %s bits: %s\n", name.c_str(), width.c_str(),
                   std::string(measured.status().message()).c_str());
      return;
    }
    results_.push_back(ResultOf(name, width, *measured));
    const QualityResult& result = results_.back();
    std::printf("%-28s %-4s %.3f bits  perplexity %.4f  KL %.5f  %.1f s\n", name.c_str(),
                width.c_str(), result.average_bits, result.perplexity, result.kl, result.seconds);
    std::fflush(stdout);
  }

  // At the midpoint of what both uniform results count.
  void Mixed(const std::string& low, const std::string& high) {
    double sum = 0;
    int found = 0;
    for (const QualityResult& result : results_) {
      if (result.name != kMixedMethod || (result.width != low && result.width != high)) continue;
      sum += result.average_bits;
      ++found;
    }
    if (found < 2) return;
    Row(std::string(kMixedName), StrCat(low, "/", high),
        {"--method", "lnq", "--average-bits", absl::StrFormat("%.4f", sum / 2)}, true);
  }

  const Flags& flags_;
  const QualityModel& model_;
  bool measure_;
  std::regex wanted_;
  std::vector<QualityResult> results_;
  std::vector<std::string> failures_;
};

constexpr char kHeader[] =
    "# Quality of every method on the bundled models\n\n"
    "Written by `build/release/bin/quality` (`--model tiny-llama` for the second model); each line "
    "is one\n`gradq quantize` with two workers, its flags are in `tests/bench/quality_rows.cc`.\n\n"
    "Average bits count codes, codebooks or scales and zero points, and outliers. Perplexity and "
    "KL (nats per\ntoken, from the original model) are on the validation text. The objective is "
    "the sum over all linears of\nthe quadratic form that the method reports: with the inputs' "
    "Gram matrix for plain ones, with the Fisher\nblocks for guided and coupled ones, so that only "
    "lines of one kind compare. Predicted and measured are the\nloss increase in nats per token, "
    "predicted on the calibration text by the Fisher blocks, measured on the\nvalidation text. "
    "Seconds are the job's without its validation, on whatever machine ran it. In a name with\n"
    "`+`, what follows is the outlier policy.\n\n"
    "The last step of ReQuant detaches single weights, and it suits k-means, whose errors know "
    "nothing of each\nother. LNQ and GPTQ choose the errors of a row so that they compensate; "
    "freeing one weight takes its part of\nthat away. On docs-llama-6m at 2 bits the calibration "
    "loss above the original's goes 0.608, 0.431, 0.354 with\nsqueezellm (quantized, requantized, "
    "detached once) and 0.169, 0.135, 0.207 with lnq guided. For these\n"
    "`--outlier-detach-fraction 0` leaves the step out.\n\n";

absl::StatusOr<bool> Run(const Flags& flags) {
  std::string page = kHeader;
  bool complete = true, known = false;
  for (const QualityModel& model : QualityModels()) {
    const bool measure = model.name == flags.model;
    known |= measure;
    std::error_code ignored;
    fs::create_directories(StrCat(flags.results, "/", model.name), ignored);
    QualityRun run(flags, model, measure);
    run.All();
    complete = complete && run.failures().empty();
    if (run.results().empty()) continue;
    page += QualitySection(model, run.results());
    if (!measure) continue;
    for (const std::string& line : CompareResults(model, run.results()))
      std::printf("%s\n", line.c_str());
  }
  if (!known) return absl::InvalidArgumentError(StrCat("unknown model: ", flags.model));
  page.pop_back();
  GRADQ_RETURN_IF_ERROR(WriteFileAtomically(flags.output, page));
  return complete;
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::Flags flags;
  CLI::App app("Quality table of all methods on a bundled model");
  app.add_option("--model", flags.model, "Bundled model to run")->capture_default_str();
  app.add_option("--rows", flags.rows, "Run methods whose name matches")->capture_default_str();
  app.add_option("--bits", flags.bits, "Widths to run")->delimiter(',')->capture_default_str();
  app.add_option("--results", flags.results, "Folder of kept results")->capture_default_str();
  app.add_option("--output", flags.output, "Page to write")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<bool> complete = gradq::Run(flags);
  if (!complete.ok()) std::fprintf(stderr, "%s\n", complete.status().ToString().c_str());
  return complete.ok() && *complete ? 0 : 1;
}
