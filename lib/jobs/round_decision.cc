#include "lib/jobs/round_decision.h"

#include <algorithm>
#include <map>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/catalog/plan.h"

namespace gradq {
namespace {

std::vector<const v1::ScoreSummary*> ScoresOf(const JobState& job, int round) {
  std::vector<const v1::ScoreSummary*> scores;
  for (const LinearState& linear : job.linears) {
    scores.push_back(&job.tasks[linear.rounds[round].score].task().result().score());
  }
  return scores;
}

// The share that a THRESHOLD round keeps apart, and within what.
absl::StatusOr<v1::Decision> Thresholds(const JobState& job, int round) {
  const OptionMap& options = job.recipe.outlier_options;
  std::vector<int> pool;
  double fraction = 0;
  if (job.rounds[round].plan.solve == RoundSolve::kDetach) {
    fraction = OptionDouble(options, "detach_fraction") / OptionInt(options, "steps");
    pool.assign(job.linears.size(), 0);
  } else {
    fraction = OptionDouble(options, "fraction");
    const bool blocks = OptionWord(options, "scope") == "block";
    for (const LinearState& linear : job.linears) pool.push_back(blocks ? linear.block : 0);
  }
  return DecideThresholds(ScoresOf(job, round), pool, fraction);
}

// Bits per weight of outliers that rounds after the choice of widths will add.
absl::StatusOr<double> LaterOutlierBits(const JobState& job, const JobState& shards) {
  const int widths = WidthsRound(shards);
  if (shards.final_round == widths) return 0.0;
  GRADQ_ASSIGN_OR_RETURN(const ModelGeometry geometry, ParseGeometry(job.record.config_json()));
  Recipe without = job.recipe;
  without.outlier_options.clear();
  const int bits = VariantsOf(job.recipe).front().bits;
  return AverageBits(geometry, job.recipe, bits) - AverageBits(geometry, without, bits);
}

}  // namespace

int WidthsRound(const JobState& job) {
  for (size_t r = 0; r < job.rounds.size(); ++r) {
    const Round& round = job.rounds[r].plan;
    if (round.decision == RoundDecision::kWidths && round.solve != RoundSolve::kNone) {
      return static_cast<int>(r);
    }
  }
  return -1;
}

bool KeepsShards(const JobState& job) {
  const int round = WidthsRound(job);
  return round >= 0 && round == job.final_round;
}

std::vector<PricedLinear> PricedLinears(const JobState& shards, bool free_widths) {
  const int round = WidthsRound(shards);
  std::vector<PricedLinear> linears;
  std::map<std::pair<int, std::string_view>, int> groups;
  for (const LinearState& linear : shards.linears) {
    std::string_view kind = std::string_view(linear.name).substr(linear.name.rfind('.') + 1);
    if (!free_widths && (kind == "k_proj" || kind == "v_proj")) kind = "q_proj";
    if (!free_widths && kind == "up_proj") kind = "gate_proj";
    const int next = static_cast<int>(groups.size());
    PricedLinear priced;
    priced.name = linear.name;
    priced.tied = groups.try_emplace({linear.block, kind}, next).first->second;
    for (const v1::ShardSummary& shard :
         shards.tasks[linear.rounds[round].solve].task().result().shards()) {
      priced.shards.push_back(&shard);
    }
    linears.push_back(std::move(priced));
  }
  return linears;
}

bool DecisionReady(const JobState& job, int round) {
  const RoundState& state = job.rounds[round];
  switch (state.plan.decision) {
    case RoundDecision::kThreshold:
    case RoundDecision::kShares:
      return std::all_of(job.linears.begin(), job.linears.end(), [&](const LinearState& linear) {
        return job.tasks[linear.rounds[round].score].succeeded();
      });
    case RoundDecision::kShrinkage:
      return job.tasks[state.loss].task().result().loss_tokens() > 0;
    case RoundDecision::kWidths:
      return job.Solved(round);
    case RoundDecision::kNone:
      break;
  }
  return false;
}

absl::StatusOr<v1::Decision> MakeDecision(const JobState& job, const JobState& shards, int round) {
  const RoundState& state = job.rounds[round];
  const OptionMap& options = job.recipe.outlier_options;
  switch (state.plan.decision) {
    case RoundDecision::kThreshold:
      return Thresholds(job, round);
    case RoundDecision::kShares:
      return DecideShares(
          ScoresOf(job, round),
          OptionDouble(options, "fraction") - OptionDouble(options, "detach_fraction"),
          OptionDouble(options, "exponent"));
    case RoundDecision::kShrinkage: {
      std::vector<std::string> names;
      for (const LinearState& linear : job.linears) names.push_back(linear.name);
      return DecideShrinkage(names, VariantsOf(job.recipe), job.tasks[state.loss].task().result());
    }
    case RoundDecision::kWidths: {
      GRADQ_ASSIGN_OR_RETURN(const double later, LaterOutlierBits(job, shards));
      return DecideWidths(PricedLinears(shards, job.recipe.free_widths),
                          job.recipe.average_bits.value_or(0) - later);
    }
    case RoundDecision::kNone:
      break;
  }
  return absl::InternalError(StrCat("the round decides nothing: ", round));
}

std::optional<double> NodeLoss(const JobState& job, int round, int node) {
  if (job.rounds[round].loss < 0) return std::nullopt;
  const v1::TaskResult& result = job.tasks[job.rounds[round].loss].task().result();
  if (result.loss_tokens() <= 0) return std::nullopt;
  const auto tokens = static_cast<double>(result.loss_tokens());
  if (node < result.node_loss_sum_size()) return result.node_loss_sum(node) / tokens;
  if (node == 0) return result.loss_sum() / tokens;
  return std::nullopt;
}

std::optional<v1::PathCheck> CheckPath(const JobState& job, int round) {
  const Round& plan = job.rounds[round].plan;
  if (!plan.score || plan.weights_round < 0) return std::nullopt;
  const auto end = [&](double t) -> std::optional<double> {
    for (size_t node = 0; node < plan.nodes.size(); ++node) {
      if (plan.nodes[node].t == t) return NodeLoss(job, round, static_cast<int>(node));
    }
    return std::nullopt;
  };
  const std::optional<double> original = end(0), quantized = end(1);
  if (!original || !quantized) return std::nullopt;
  v1::PathCheck check;
  for (const LinearState& linear : job.linears) {
    const TaskState& score = job.tasks[linear.rounds[round].score];
    if (!score.succeeded()) return std::nullopt;
    check.set_integral(check.integral() + score.task().result().score().signed_sum());
  }
  check.set_round(round);
  check.set_purpose(plan.purpose);
  check.set_measured(*quantized - *original);
  return check;
}

}  // namespace gradq
