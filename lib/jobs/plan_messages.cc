#include "lib/jobs/plan_messages.h"

#include <utility>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

OptionMap ToOptionMap(const google::protobuf::Map<std::string, std::string>& map) {
  return OptionMap(map.begin(), map.end());
}

// The enums of both sides are listed in the same order.
static_assert(static_cast<int>(RoundSolve::kNone) == v1::RoundPlan::NOTHING);
static_assert(static_cast<int>(RoundSolve::kQuantize) == v1::RoundPlan::QUANTIZE);
static_assert(static_cast<int>(RoundSolve::kDetach) == v1::RoundPlan::DETACH);
static_assert(static_cast<int>(RoundDecision::kNone) == v1::RoundPlan::NO_DECISION);
static_assert(static_cast<int>(RoundDecision::kThreshold) == v1::RoundPlan::THRESHOLD);
static_assert(static_cast<int>(RoundDecision::kShares) == v1::RoundPlan::SHARES);
static_assert(static_cast<int>(RoundDecision::kShrinkage) == v1::RoundPlan::SHRINKAGE);
static_assert(static_cast<int>(RoundDecision::kWidths) == v1::RoundPlan::WIDTHS);

}  // namespace

absl::StatusOr<Recipe> RecipeOf(const v1::Recipe& recipe) {
  Recipe result;
  if (!recipe.method().empty()) result.method = recipe.method();
  if (recipe.bits() != 0) result.bits = recipe.bits();
  if (!recipe.objective().empty()) {
    GRADQ_ASSIGN_OR_RETURN(result.objective, ParseObjective(recipe.objective()));
  }
  if (recipe.groups() != 0) result.groups = recipe.groups();
  result.options = ToOptionMap(recipe.options());
  if (!recipe.outliers().empty()) result.outliers = recipe.outliers();
  result.outlier_options = ToOptionMap(recipe.outlier_options());
  if (recipe.has_average_bits()) result.average_bits = recipe.average_bits();
  result.free_widths = recipe.free_widths();
  return result;
}

v1::RoundPlan MessageOf(const Round& round) {
  v1::RoundPlan message;
  message.set_purpose(round.purpose);
  message.set_weights_round(round.weights_round);
  for (const PathNode& node : round.nodes) {
    v1::RoundPlan::Node& added = *message.add_nodes();
    added.set_variant(node.variant);
    added.set_t(node.t);
    added.set_coefficient(node.coefficient);
  }
  message.set_backward(round.backward);
  for (const std::string& statistic : round.statistics) message.add_statistics(statistic);
  message.set_first_sequence(static_cast<int32_t>(round.first_sequence));
  message.set_sequences(static_cast<int32_t>(round.sequences));
  message.set_gradient_sequences(static_cast<int32_t>(round.gradient_sequences));
  message.set_gradient_absolute(round.gradient_absolute);
  message.set_score(round.score);
  message.set_decision(static_cast<v1::RoundPlan::Decision>(round.decision));
  message.set_solve(static_cast<v1::RoundPlan::Solve>(round.solve));
  message.set_statistics_round(round.statistics_round);
  message.set_variants(round.variants);
  message.set_pilot(round.pilot);
  return message;
}

Round RoundOf(const v1::RoundPlan& message) {
  Round round;
  round.purpose = message.purpose();
  round.weights_round = message.weights_round();
  for (const v1::RoundPlan::Node& node : message.nodes()) {
    round.nodes.push_back({node.variant(), node.t(), node.coefficient()});
  }
  round.backward = message.backward();
  round.statistics = {message.statistics().begin(), message.statistics().end()};
  round.first_sequence = message.first_sequence();
  round.sequences = message.sequences();
  round.gradient_sequences = message.gradient_sequences();
  round.gradient_absolute = message.gradient_absolute();
  round.score = message.score();
  round.decision = static_cast<RoundDecision>(message.decision());
  round.solve = static_cast<RoundSolve>(message.solve());
  round.statistics_round = message.statistics_round();
  round.variants = message.variants();
  round.pilot = message.pilot();
  return round;
}

std::vector<Round> RoundsOf(const v1::JobPlan& plan) {
  std::vector<Round> rounds;
  for (const v1::RoundPlan& round : plan.rounds()) rounds.push_back(RoundOf(round));
  return rounds;
}

}  // namespace gradq
