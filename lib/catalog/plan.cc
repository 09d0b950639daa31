#include "lib/catalog/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/memory_model.h"
#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;

int64_t ToBytes(double bytes) {
  constexpr double kMost = 9.0e18;
  return static_cast<int64_t>(std::min(bytes, kMost));
}

// The reachable range as it is printed: rounded inwards, so that what a message names is accepted.
double CeilHundredth(double value) { return std::ceil(value * 100) / 100; }
double FloorHundredth(double value) { return std::floor(value * 100) / 100; }

absl::Status CheckRange(std::string_view what, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(what, " must be in ", min, "..", max, ": ", value));
}

absl::Status CheckInputs(const PlanInputs& inputs) {
  constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    fewest =
        std::min(fewest, LinearOf(inputs.geometry, 0, static_cast<LinearKind>(kind)).out_features);
  }
  GRADQ_RETURN_IF_ERROR(CheckRange("groups (up to the rows of the smallest linear)",
                                   inputs.recipe.groups, 1, fewest));
  GRADQ_RETURN_IF_ERROR(CheckRange("stages (up to the blocks of the model; 0: chosen)",
                                   inputs.stages, 0, inputs.geometry.blocks));
  GRADQ_RETURN_IF_ERROR(CheckRange("sequences", inputs.sequences, 1, kMaxInt));
  GRADQ_RETURN_IF_ERROR(CheckRange("length", inputs.length, 2, kMaxInt));
  GRADQ_RETURN_IF_ERROR(CheckRange("chunk_sequences", inputs.chunk_sequences, 1, kMaxInt));
  return CheckRange("sequences × length", inputs.sequences * inputs.length, 2, kMaxTokens);
}

// The widths that a budget can reach are those of uniform models at the narrowest and widest bits.
absl::Status CheckAverageBits(const ModelGeometry& geometry, const Recipe& recipe) {
  if (!recipe.average_bits.has_value()) return absl::OkStatus();
  const std::vector<Variant> widths = VariantsOf(recipe);
  const double least = AverageBits(geometry, recipe, widths.front().bits),
               most = AverageBits(geometry, recipe, widths.back().bits);
  if (*recipe.average_bits >= least && *recipe.average_bits <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("average bits out of reach (with tables and outliers ",
                                           "this model reaches ", CeilHundredth(least), " to ",
                                           FloorHundredth(most), "): ", *recipe.average_bits));
}

std::vector<const StatisticRow*> RowsOf(const std::vector<std::string>& names) {
  std::vector<const StatisticRow*> rows;
  for (const StatisticRow& statistic : Statistics()) {
    if (std::find(names.begin(), names.end(), statistic.name) != names.end())
      rows.push_back(&statistic);
  }
  return rows;
}

// Statistics of rounds before `round` that its own or a later solve reads.
std::vector<const StatisticRow*> RetainedAt(const std::vector<Round>& program, size_t round) {
  std::vector<const StatisticRow*> retained;
  for (size_t made = 0; made < round; ++made) {
    const bool read = std::any_of(
        program.begin() + static_cast<std::ptrdiff_t>(round), program.end(),
        [&](const Round& later) { return later.statistics_round == static_cast<int>(made); });
    if (!read) continue;
    for (const StatisticRow* row : RowsOf(program[made].statistics)) retained.push_back(row);
  }
  return retained;
}

// A round with what its pass costs: per token of the slice and block, over all its nodes.
struct Pass {
  Pass(const PlanInputs& inputs, const std::vector<Round>& program, size_t index)
      : round(program[index]),
        model(inputs, round, RowsOf(round.statistics), RetainedAt(program, index)) {
    const auto nodes = static_cast<double>(round.nodes.size());
    const auto summed = static_cast<double>(
        std::count_if(round.nodes.begin(), round.nodes.end(),
                      [](const PathNode& node) { return node.coefficient != 0; }));
    tokens = static_cast<double>(round.sequences) * static_cast<double>(inputs.length);
    forward = nodes * model.ForwardFlopPerToken();
    statistics = summed * model.StatisticsFlopPerToken();
    if (round.backward) {
      again = summed * model.ForwardFlopPerToken();
      gradient = summed * model.BackwardFlopPerToken();
      head = (summed + (nodes - summed) / 2) * model.HeadFlopPerToken();
    } else if (round.decision == RoundDecision::kShrinkage) {
      head = nodes / 2 * model.HeadFlopPerToken();
    }
  }

  const Round& round;
  MemoryModel model;
  double tokens = 0;
  double forward = 0, gradient = 0, statistics = 0, head = 0;
  double again =
      0;  // the forward of a backward task, in stages that ran it before to feed the next
};

// Blocks per stage so that the dearest stage is as cheap as can be: `count` blocks cost block each,
// in the last stage last_block each and `head` on top. Stages before the last share what is left as
// evenly as they can, the first ones one more.
std::vector<int> SplitBlocks(int blocks, int stages, double block, double last_block, double head) {
  int best_last = 1;
  double best_cost = std::numeric_limits<double>::infinity();
  for (int last = 1; last <= blocks - (stages - 1); ++last) {
    const int others = blocks - last;
    if (stages == 1 && others != 0) continue;
    const double longest = stages == 1 ? 0 : std::ceil(static_cast<double>(others) / (stages - 1));
    const double cost = std::max(longest * block, last * last_block + head);
    if (cost < best_cost) {
      best_cost = cost;
      best_last = last;
    }
  }
  std::vector<int> first{0};
  const int others = blocks - best_last;
  for (int stage = 0; stage + 1 < stages; ++stage) {
    first.push_back(first.back() + others / (stages - 1) + (stage < others % (stages - 1) ? 1 : 0));
  }
  return first;
}

class Planner {
 public:
  Planner(const PlanInputs& inputs, const QuantizerRow& row, std::vector<Round> program)
      : inputs_(inputs), row_(row), program_(std::move(program)) {
    passes_.reserve(program_.size());
    for (size_t r = 0; r < program_.size(); ++r) passes_.emplace_back(inputs_, program_, r);
    backward_ = std::any_of(program_.begin(), program_.end(),
                            [](const Round& round) { return round.backward; });
  }

  absl::StatusOr<Plan> Make() const {
    const int blocks = static_cast<int>(inputs_.geometry.blocks);
    const int fewest = inputs_.stages > 0 ? inputs_.stages : std::clamp(inputs_.workers, 1, blocks);
    const int most = inputs_.stages > 0 ? inputs_.stages : blocks;
    // More stages before recompute: both run the forward once more, but only stages also share the
    // statistics.
    for (const bool recompute : {false, true}) {
      if (recompute && !backward_) break;
      for (int stages = fewest; stages <= most; ++stages) {
        Plan plan = ForStages(stages, recompute);
        if (inputs_.worker_memory_bytes <= 0 ||
            plan.worker_memory_bytes <= inputs_.worker_memory_bytes)
          return plan;
      }
    }
    const Plan smallest = ForStages(most, backward_);
    return absl::ResourceExhaustedError(StrCat(
        "job does not fit a worker's memory with ",
        inputs_.stages > 0 ? "the stages asked for" : "any number of stages",
        " (bytes needed with ", most, " stages, bytes available): ", smallest.worker_memory_bytes,
        ", ", inputs_.worker_memory_bytes));
  }

 private:
  Plan ForStages(int stages, bool recompute) const {
    const int blocks = static_cast<int>(inputs_.geometry.blocks);
    // Of one block of the last stage, of any other, and of the head.
    double last_block = 0, block = 0, head = 0;
    for (const Pass& pass : passes_) {
      const double once = pass.tokens * (pass.forward + pass.gradient + pass.statistics);
      last_block += once;
      // In a backward round every stage but the last runs its forward twice: to feed the next, and
      // with a graph.
      block += once + pass.tokens * pass.again;
      head += pass.tokens * pass.head;
    }
    Plan plan;
    plan.rounds = program_;
    plan.first_block = SplitBlocks(blocks, stages, block, last_block, head);
    plan.chunks = static_cast<int>((inputs_.sequences + inputs_.chunk_sequences - 1) /
                                   inputs_.chunk_sequences);
    plan.statistics = program_[0].statistics;
    plan.needs_backward = program_[0].backward;
    plan.recompute = recompute;
    AddMemory(stages, recompute, &plan);
    plan.artifact_bytes = ToBytes(ArtifactBytes(inputs_, row_));
    plan.shard_bytes = ToBytes(ShardBytes(inputs_, row_, program_));
    const int before_last = plan.first_block.back();
    for (const Pass& pass : passes_) {
      plan.pass_flop += pass.tokens * (blocks * (pass.forward + pass.gradient) +
                                       (recompute ? blocks : before_last) * pass.again + pass.head);
      plan.statistics_flop += pass.tokens * blocks * pass.statistics;
    }
    plan.solve_flop = SolveFlop(inputs_, row_, program_);
    return plan;
  }

  void AddMemory(int stages, bool recompute, Plan* plan) const {
    const int blocks = static_cast<int>(inputs_.geometry.blocks);
    double weights = 0, graph = 0, held = 0, need = 0, spool = 0;
    for (const Pass& pass : passes_) {
      double held_here = 0, retained = 0;
      for (int stage = 0; stage < stages; ++stage) {
        const int first = plan->first_block[stage],
                  end = stage + 1 < stages ? plan->first_block[stage + 1] : blocks;
        const StageMemory memory = pass.model.OfStage(first, end, recompute);
        weights = std::max(weights, memory.weights);
        graph = std::max(graph, memory.graph);
        held_here = std::max(held_here, memory.accumulating);
        retained += memory.retained;
        need = std::max(need, std::max(memory.weights + memory.graph + memory.accumulating,
                                       memory.finished + memory.solve) +
                                  memory.retained + memory.streams);
      }
      held = std::max(held, held_here);
      const double stream = pass.tokens * static_cast<double>(inputs_.geometry.hidden_size) * 4 *
                            static_cast<double>(std::max<size_t>(1, pass.round.nodes.size()));
      spool = std::max(
          spool, (stages - 1) * stream * (pass.round.backward ? 2 : 1) + held_here + retained);
    }
    plan->weights_bytes = ToBytes(weights);
    plan->activations_bytes = ToBytes(graph);
    plan->statistics_bytes = ToBytes(held);
    plan->worker_memory_bytes = ToBytes(need);
    plan->spool_bytes = ToBytes(spool);
  }

  const PlanInputs& inputs_;
  const QuantizerRow& row_;
  const std::vector<Round> program_;
  std::vector<Pass> passes_;
  bool backward_ = false;
};

}  // namespace

absl::StatusOr<Plan> MakePlan(const PlanInputs& inputs) {
  PlanInputs resolved = inputs;
  GRADQ_ASSIGN_OR_RETURN(resolved.recipe, ResolveRecipe(inputs.recipe));
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(resolved.recipe.method));
  GRADQ_RETURN_IF_ERROR(CheckInputs(resolved));
  GRADQ_RETURN_IF_ERROR(CheckAverageBits(resolved.geometry, resolved.recipe));
  GRADQ_ASSIGN_OR_RETURN(std::vector<Round> program,
                         MakeProgram(resolved.recipe, resolved.sequences));
  GRADQ_ASSIGN_OR_RETURN(Plan plan, Planner(resolved, *row, std::move(program)).Make());
  plan.inference_cpu = PredictInference(resolved.geometry, resolved.recipe, InferenceTarget::kCpu);
  plan.inference_cuda =
      PredictInference(resolved.geometry, resolved.recipe, InferenceTarget::kCuda);
  return plan;
}

double AverageBits(const ModelGeometry& geometry, const Recipe& recipe, int bits) {
  const QuantizerRow& row = **FindQuantizer(recipe.method);
  double stored = 0, weights = 0;
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    const LinearShape linear = LinearOf(geometry, 0, static_cast<LinearKind>(kind));
    stored += StoredBits(linear, row, recipe.options, bits) + OutlierBits(linear, recipe);
    weights += static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
  }
  return stored / weights;
}

}  // namespace gradq
