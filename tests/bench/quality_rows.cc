#include "tests/bench/quality_rows.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr QualityModel kModels[] = {
    {.name = "docs-llama-6m", .length = 512, .groups = 4},
    {.name = "tiny-llama", .length = 256, .groups = 2},
};

std::string Optional(const std::optional<double>& value) {
  return value ? absl::StrFormat("%.4g", *value) : "";
}

double Excess(const QualityResult& result) {
  return std::log(result.perplexity / result.reference_perplexity);
}

double Percent(double a, double b) { return 100 * (a / b - 1); }

const char* Verdict(bool holds) { return holds ? "holds" : "**does not hold**"; }

// The results of one model, found by name and width.
class Comparisons {
 public:
  Comparisons(const QualityModel& model, std::span<const QualityResult> results)
      : model_(model), results_(results) {}

  const QualityResult* Find(std::string_view name, std::string_view width) const {
    for (const QualityResult& result : results_) {
      if (result.name == name && result.width == width) return &result;
    }
    return nullptr;
  }

  // a's perplexity against `limit` times b's.
  void Perplexity(std::string_view a, std::string_view b, std::string_view width, double limit) {
    const QualityResult *first = Find(a, width), *second = Find(b, width);
    if (first == nullptr || second == nullptr) return;
    const bool holds = first->perplexity < limit * second->perplexity ||
                       (limit == 1 && first->perplexity == second->perplexity);
    const std::string bar =
        limit == 1 ? "not above" : absl::StrFormat("%.1f %% below", 100 * (1 - limit));
    lines_.push_back(absl::StrFormat(
        "%s bits, %s against %s: perplexity %.4f, %.4f (%+.2f %%), average bits %.3f, %.3f; %s: %s",
        std::string(width), std::string(a), std::string(b), first->perplexity, second->perplexity,
        Percent(first->perplexity, second->perplexity), first->average_bits, second->average_bits,
        bar, Verdict(holds)));
  }

  // Measured excess loss of mixed widths against the line between both uniform results.
  void Mixed(std::string_view low, std::string_view high) {
    const std::string width = StrCat(low, "/", high);
    const QualityResult *mixed = Find(kMixedName, width), *a = Find(kMixedMethod, low),
                        *b = Find(kMixedMethod, high);
    if (mixed == nullptr || a == nullptr || b == nullptr) return;
    const double share =
        (mixed->average_bits - a->average_bits) / (b->average_bits - a->average_bits);
    const double line = Excess(*a) + share * (Excess(*b) - Excess(*a));
    lines_.push_back(absl::StrFormat(
        "mixed widths at %.4f bits between %.4f and %.4f: excess loss %.5f nats, on the line "
        "between both %.5f (%+.1f %%); 10 %% below: %s",
        mixed->average_bits, a->average_bits, b->average_bits, Excess(*mixed), line,
        Percent(Excess(*mixed), line), Verdict(Excess(*mixed) <= 0.9 * line)));
  }

  void PathChecks() {
    for (const QualityResult& result : results_) {
      if (!result.path_error.has_value()) continue;
      lines_.push_back(absl::StrFormat(
          "%s bits, %s: integral along the path within %.3f %% of the measured loss difference; "
          "0.5 %%: %s",
          result.width, result.name, 100 * *result.path_error,
          Verdict(*result.path_error <= 0.005)));
    }
  }

  std::vector<std::string> All() {
    for (const char* width : {"3", "4"}) Perplexity("gwq", "rtn", width, 1);
    for (const char* width : {"2", "3"})
      Perplexity("lnq guided + squeezellm", "lnq guided", width, 1);
    Perplexity("lnq coupled", "lnq guided", "2", model_.name == "tiny-llama" ? 0.96 : 0.99);
    for (const char* width : {"3", "4"}) Perplexity("lnq coupled", "lnq guided", width, 1);
    for (const char* width : {"2", "3", "4"})
      Perplexity("squeezellm + pqi (requant)", "squeezellm + squeezellm", width, 1);
    for (const char* width : {"2", "3", "4"})
      Perplexity("lnq guided + pqi (requant)", "lnq guided + squeezellm", width, 1);
    for (const char* width : {"2", "3", "4"})
      Perplexity("lnq guided + pqi, nothing detached", "lnq guided + squeezellm", width, 1);
    Mixed("2", "3");
    Mixed("3", "4");
    PathChecks();
    return std::move(lines_);
  }

 private:
  const QualityModel& model_;
  std::span<const QualityResult> results_;
  std::vector<std::string> lines_;
};

}  // namespace

std::span<const QualityModel> QualityModels() { return kModels; }

std::span<const QualityMethod> QualityMethods() {
  static const std::vector<QualityMethod> methods = [] {
    std::vector<QualityMethod> all = {
        {"rtn", {"--method", "rtn"}},
        {"gwq", {"--method", "rtn", "--outliers", "gwq"}},
        {"gwq, score gradient_delta",
         {"--method", "rtn", "--outliers", "gwq", "--outlier-score", "gradient_delta"}},
        {"gwq, score fisher_delta",
         {"--method", "rtn", "--outliers", "gwq", "--outlier-score", "fisher_delta"}},
        {"gwq, score magnitude",
         {"--method", "rtn", "--outliers", "gwq", "--outlier-score", "magnitude"}},
        {"gptq", {"--method", "gptq", "--objective", "plain"}},
        {"gptq guided", {"--method", "gptq"}},
        {"gptvq1d", {"--method", "gptvq1d", "--objective", "plain"}},
        {"gptvq1d guided", {"--method", "gptvq1d"}},
        {"squeezellm", {"--method", "squeezellm"}},
        {"squeezellm + squeezellm", {"--method", "squeezellm", "--outliers", "squeezellm"}},
        {"squeezellm + pqi (requant)", {"--method", "squeezellm", "--outliers", "pqi"}},
        {"lnq", {"--method", "lnq", "--objective", "plain"}},
        {"lnq guided", {"--method", "lnq"}},
        {"lnq guided + gwq", {"--method", "lnq", "--outliers", "gwq"}},
        {"lnq guided + squeezellm", {"--method", "lnq", "--outliers", "squeezellm"}},
        {"lnq guided + pqi (requant)", {"--method", "lnq", "--outliers", "pqi"}},
        {"lnq guided + pqi, nothing detached",
         {"--method", "lnq", "--outliers", "pqi", "--outlier-detach-fraction", "0"}},
        {"lnq coupled", {"--method", "lnq", "--objective", "coupled"}},
        {"lnq coupled + gwq", {"--method", "lnq", "--objective", "coupled", "--outliers", "gwq"}},
        {"lnq coupled + squeezellm",
         {"--method", "lnq", "--objective", "coupled", "--outliers", "squeezellm"}},
        {"lnq coupled + pqi (requant)",
         {"--method", "lnq", "--objective", "coupled", "--outliers", "pqi"}},
    };
    return all;
  }();
  return methods;
}

std::vector<std::string> CompareResults(const QualityModel& model,
                                        std::span<const QualityResult> results) {
  return Comparisons(model, results).All();
}

std::string QualitySection(const QualityModel& model, std::span<const QualityResult> results) {
  std::string text = absl::StrFormat(
      "## %s\n\n%d x %d tokens of calibration, %d x %d of evaluation, %d channel groups.\n\n"
      "| bits | method | average bits | perplexity | KL | objective | predicted | measured | "
      "seconds |\n|---|---|---|---|---|---|---|---|---|\n",
      std::string(model.name), QualityModel::kCalibration, model.length, QualityModel::kEvaluation,
      model.length, model.groups);
  for (const char* width : {"16", "2", "2/3", "3", "3/4", "4"}) {
    for (const QualityResult& result : results) {
      if (result.width != width) continue;
      std::string name = result.name;
      if (result.shrinkage.has_value())
        name += absl::StrFormat(" (shrinkage %g)", *result.shrinkage);
      text += absl::StrFormat(
          "| %s | %s | %.3f | %.4f | %s | %s | %s | %s | %s |\n", width, name, result.average_bits,
          result.perplexity, result.name == "dense" ? "" : absl::StrFormat("%.5f", result.kl),
          Optional(result.objective), Optional(result.predicted_loss_increase),
          result.name == "dense" ? "" : absl::StrFormat("%.4g", Excess(result)),
          result.name == "dense" ? "" : absl::StrFormat("%.1f", result.seconds));
    }
  }
  const std::vector<std::string> lines = CompareResults(model, results);
  if (!lines.empty()) text += "\nWhat this says:\n\n";
  for (const std::string& line : lines) text += StrCat("- ", line, "\n");
  return text + "\n";
}

}  // namespace gradq
