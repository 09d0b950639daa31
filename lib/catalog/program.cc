#include "lib/catalog/program.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

bool NeedsGradient(std::string_view name) {
  const auto row = FindStatistic(name);
  return row.ok() && (*row)->needs_gradient;
}

// In catalog order, so that equal recipes list them equally.
std::vector<std::string> InCatalogOrder(const std::vector<std::string_view>& needed) {
  std::vector<std::string> ordered;
  for (const StatisticRow& row : Statistics()) {
    if (std::find(needed.begin(), needed.end(), row.name) != needed.end())
      ordered.emplace_back(row.name);
  }
  return ordered;
}

absl::StatusOr<Round> Quantize(const Recipe& recipe, int64_t sequences, int64_t held_out) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(recipe.method));
  GRADQ_ASSIGN_OR_RETURN(const OutlierPolicyRow* policy, FindOutlierPolicy(recipe.outliers));
  std::vector<std::string_view> needed = row->needs(recipe.objective, recipe.options);
  for (const std::string_view name : policy->needs(recipe.outlier_options)) needed.push_back(name);
  // Widths are chosen by the predicted loss increase.
  if (recipe.average_bits.has_value()) needed.push_back(kFisherBlocks);
  Round round;
  round.purpose = "quantize";
  round.backward = std::any_of(needed.begin(), needed.end(), NeedsGradient);
  // The predicted loss increase is always priced with the Fisher blocks.
  if (round.backward) needed.push_back(kFisherBlocks);
  round.statistics = InCatalogOrder(needed);
  round.sequences = sequences - held_out;
  round.solve = RoundSolve::kQuantize;
  round.variants = static_cast<int>(VariantsOf(recipe).size());
  if (!round.statistics.empty()) {
    round.nodes = {PathNode{}};
    round.statistics_round = 0;
  }
  if (recipe.average_bits.has_value()) round.decision = RoundDecision::kWidths;
  if (policy->name != "gwq") return round;
  const OptionMap& options = recipe.outlier_options;
  round.gradient_sequences = OptionInt(options, "samples");
  round.gradient_absolute = OptionWord(options, "sum") == "absolute";
  if (round.gradient_sequences > round.sequences) {
    return absl::InvalidArgumentError(StrCat(
        "gwq takes more samples than there are calibration windows: ", round.gradient_sequences,
        ", ", round.sequences));
  }
  if (OptionWord(options, "scope") != "linear") {
    round.score = true;
    round.decision = RoundDecision::kThreshold;
  }
  return round;
}

// The variants of `quantized` on the held-out sequences.
Round Choose(const Round& quantized, int64_t held_out) {
  Round round;
  round.purpose = "choose";
  round.weights_round = 0;
  for (int variant = 0; variant < quantized.variants; ++variant) {
    round.nodes.push_back({variant, 1, 0});
  }
  round.first_sequence = quantized.sequences;
  round.sequences = held_out;
  round.decision = RoundDecision::kShrinkage;
  return round;
}

// The chosen variant of `pilot`, from the statistics of all sequences.
Round QuantizeChosen(const Round& pilot, int64_t sequences) {
  Round round = pilot;
  round.purpose = "quantize";
  round.pilot = false;
  round.sequences = sequences;
  round.statistics_round = 2;
  round.variants = 1;
  return round;
}

// PQI between the original and the shards of `weights_round`; the loss at both ends is its check.
Round Integrate(const Recipe& recipe, int64_t sequences, int weights_round) {
  Round round;
  round.weights_round = weights_round;
  round.nodes = GaussLegendre(OptionInt(recipe.outlier_options, "nodes"));
  round.nodes.push_back({-1, 1, 0});
  round.nodes.push_back({-1, 0, 0});
  round.backward = true;
  round.statistics = {std::string(kWeightGradient)};
  round.sequences = sequences;
  round.score = true;
  return round;
}

}  // namespace

absl::StatusOr<std::vector<Round>> MakeProgram(const Recipe& recipe, int64_t sequences) {
  const bool open_shrinkage = VariantsOf(recipe).size() > 1 && !recipe.average_bits.has_value();
  int64_t held_out = 0;
  if (open_shrinkage) {
    held_out = std::min<int64_t>(OptionInt(recipe.options, "holdout"), sequences / 2);
    if (held_out == 0) {
      return absl::InvalidArgumentError(
          StrCat("too few calibration windows to hold one out for the shrinkage: ", sequences));
    }
  }
  std::vector<Round> program;
  GRADQ_ASSIGN_OR_RETURN(Round quantize, Quantize(recipe, sequences, held_out));
  program.push_back(std::move(quantize));
  if (open_shrinkage) {
    program[0].purpose = "pilot";
    program[0].pilot = true;
    program.push_back(Choose(program[0], held_out));
    program.push_back(QuantizeChosen(program[0], sequences));
  }
  if (recipe.outliers != "pqi") return program;

  if (OptionDouble(recipe.outlier_options, "fraction") >
      OptionDouble(recipe.outlier_options, "detach_fraction")) {
    const int first = FinalRound(program);
    Round requantize = Integrate(recipe, sequences, first);
    requantize.purpose = "requantize";
    requantize.decision = RoundDecision::kShares;
    requantize.solve = RoundSolve::kQuantize;
    requantize.statistics_round = program[first].statistics_round;
    program.push_back(std::move(requantize));
  }
  if (OptionDouble(recipe.outlier_options, "detach_fraction") == 0) return program;
  for (int step = 0; step < OptionInt(recipe.outlier_options, "steps"); ++step) {
    Round detach = Integrate(recipe, sequences, FinalRound(program));
    detach.purpose = "detach";
    detach.decision = RoundDecision::kThreshold;
    detach.solve = RoundSolve::kDetach;
    detach.statistics_round = static_cast<int>(program.size());
    program.push_back(std::move(detach));
  }
  return program;
}

int FinalRound(const std::vector<Round>& program) {
  int final = 0;
  for (size_t r = 0; r < program.size(); ++r) {
    if (program[r].solve != RoundSolve::kNone) final = static_cast<int>(r);
  }
  return final;
}

int VariantDecisionOf(const std::vector<Round>& program, int round) {
  if (program[round].variants == 1) return -1;
  if (program[round].decision == RoundDecision::kWidths) return round;
  for (size_t r = 0; r < program.size(); ++r) {
    if (program[r].decision == RoundDecision::kShrinkage && program[r].weights_round == round)
      return static_cast<int>(r);
  }
  return -1;
}

std::vector<PathNode> GaussLegendre(int n) {
  std::vector<PathNode> nodes(n);
  for (int i = 0; i < n; ++i) {
    // Newton's method on the Legendre polynomial P_n from the customary start.
    double x = std::cos(std::numbers::pi * (n - i - 0.25) / (n + 0.5)), slope = 0;
    for (int step = 0; step < 100; ++step) {
      double previous = 1, value = x;
      for (int k = 2; k <= n; ++k) {
        previous = std::exchange(value, ((2 * k - 1) * x * value - (k - 1) * previous) / k);
      }
      slope = n * (x * value - previous) / (x * x - 1);
      const double move = value / slope;
      x -= move;
      if (std::fabs(move) < 1e-15) break;
    }
    nodes[i] = {-1, 0.5 * (1 + x), 1 / ((1 - x * x) * slope * slope)};
  }
  return nodes;
}

}  // namespace gradq
