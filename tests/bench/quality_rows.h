#pragma once

// What the quality table measures: methods with their flags, and the numbers of one run. Used by
// tests/bench/quality alone.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gradq {

// A bundled model and the windows every row is calibrated and evaluated on.
struct QualityModel {
  std::string_view name;
  int length = 0;
  int groups = 0;
  static constexpr int kCalibration = 64;
  static constexpr int kEvaluation = 96;
};
std::span<const QualityModel> QualityModels();

// One method, run at 2, 3 and 4 bits.
struct QualityMethod {
  std::string_view name;
  std::vector<std::string_view> flags;  // of gradq quantize
};
std::span<const QualityMethod> QualityMethods();

// Mixed widths of this method at the midpoints of its own counted averages.
inline constexpr std::string_view kMixedMethod = "lnq guided";
inline constexpr std::string_view kMixedName = "lnq guided, mixed widths";

// One line of the table; as gradq quantize and gradq inspect report it.
struct QualityResult {
  std::string name;
  std::string width;  // "2", "3", "4"; "2/3", "3/4": mixed; "16": dense
  std::vector<std::string> flags;
  double average_bits = 0;
  double perplexity = 0;
  double reference_perplexity = 0;
  double kl = 0;
  std::optional<double> objective;  // Σ objective_final of all linears
  std::optional<double> predicted_loss_increase;
  std::optional<double> shrinkage;
  std::optional<double> path_error;  // largest |integral / measured - 1| of a round
  double seconds = 0;                // of the job, validation taken off
};

// What the results say about the bars: one Markdown line each, for those whose rows are there.
std::vector<std::string> CompareResults(const QualityModel& model,
                                        std::span<const QualityResult> results);

// The section of one model: table and comparisons.
std::string QualitySection(const QualityModel& model, std::span<const QualityResult> results);

}  // namespace gradq
