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

absl::Status CheckRange(std::string_view what, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(what, " must be in ", min, "..", max, ": ", value));
}

absl::Status CheckInputs(const PlanInputs& inputs, const QuantizerRow& row) {
  constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
  GRADQ_RETURN_IF_ERROR(
      CheckRange(StrCat("bits of ", row.name), inputs.bits, row.min_bits, row.max_bits));
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    fewest =
        std::min(fewest, LinearOf(inputs.geometry, 0, static_cast<LinearKind>(kind)).out_features);
  }
  GRADQ_RETURN_IF_ERROR(
      CheckRange("groups (up to the rows of the smallest linear)", inputs.groups, 1, fewest));
  GRADQ_RETURN_IF_ERROR(CheckRange("stages (up to the blocks of the model; 0: chosen)",
                                   inputs.stages, 0, inputs.geometry.blocks));
  GRADQ_RETURN_IF_ERROR(CheckRange("sequences", inputs.sequences, 1, kMaxInt));
  GRADQ_RETURN_IF_ERROR(CheckRange("length", inputs.length, 2, kMaxInt));
  GRADQ_RETURN_IF_ERROR(CheckRange("chunk_sequences", inputs.chunk_sequences, 1, kMaxInt));
  return CheckRange("sequences × length", inputs.sequences * inputs.length, 2, kMaxTokens);
}

// In catalog order, so that equal recipes list them equally.
absl::StatusOr<std::vector<const StatisticRow*>> StatisticsOf(const PlanInputs& inputs,
                                                              const QuantizerRow& row,
                                                              const OptionMap& options) {
  std::vector<std::string_view> needed = row.needs(inputs.objective, options);
  const bool gradients = std::any_of(needed.begin(), needed.end(), [](std::string_view name) {
    const auto statistic = FindStatistic(name);
    return statistic.ok() && (*statistic)->needs_gradient;
  });
  // The predicted loss increase is always priced with the Fisher blocks.
  if (gradients) needed.push_back(kFisherBlocks);
  std::vector<const StatisticRow*> rows;
  for (const StatisticRow& statistic : Statistics()) {
    if (std::find(needed.begin(), needed.end(), statistic.name) != needed.end())
      rows.push_back(&statistic);
  }
  return rows;
}

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
  Planner(const PlanInputs& inputs, const QuantizerRow& row, OptionMap options,
          std::vector<const StatisticRow*> statistics)
      : inputs_(inputs),
        row_(row),
        options_(std::move(options)),
        statistics_(std::move(statistics)),
        backward_(std::any_of(statistics_.begin(), statistics_.end(),
                              [](const StatisticRow* s) { return s->needs_gradient; })),
        model_(inputs, statistics_, backward_) {}

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
    const double forward = model_.ForwardFlopPerToken(),
                 gradient = backward_ ? model_.BackwardFlopPerToken() : 0;
    const double statistics = model_.StatisticsFlopPerToken(),
                 head = backward_ ? model_.HeadFlopPerToken() : 0;
    const double last_block = forward + gradient + statistics;
    // In a backward job every stage but the last runs its forward twice: to feed the next, and with
    // a graph.
    const double block = last_block + (backward_ ? forward : 0);

    Plan plan;
    plan.first_block = SplitBlocks(blocks, stages, block, last_block, head);
    plan.chunks = static_cast<int>((inputs_.sequences + inputs_.chunk_sequences - 1) /
                                   inputs_.chunk_sequences);
    for (const StatisticRow* statistic : statistics_) plan.statistics.emplace_back(statistic->name);
    plan.needs_backward = backward_;
    plan.recompute = recompute;
    double weights = 0, graph = 0, held = 0, need = 0;
    for (int stage = 0; stage < stages; ++stage) {
      const int first = plan.first_block[stage],
                end = stage + 1 < stages ? plan.first_block[stage + 1] : blocks;
      const StageMemory memory = model_.OfStage(first, end, recompute);
      weights = std::max(weights, memory.weights);
      graph = std::max(graph, memory.graph);
      held = std::max(held, memory.accumulating);
      need = std::max(need, std::max(memory.weights + memory.graph + memory.accumulating,
                                     memory.finished + memory.solve) +
                                memory.streams);
    }
    plan.weights_bytes = ToBytes(weights);
    plan.activations_bytes = ToBytes(graph);
    plan.statistics_bytes = ToBytes(held);
    plan.worker_memory_bytes = ToBytes(need);

    const double tokens =
        static_cast<double>(inputs_.sequences) * static_cast<double>(inputs_.length);
    const double stream = tokens * static_cast<double>(inputs_.geometry.hidden_size) * 4;
    plan.spool_bytes = ToBytes((stages - 1) * stream * (backward_ ? 2 : 1) + held);
    plan.artifact_bytes = ToBytes(ArtifactBytes(inputs_, row_, options_));
    const int last = blocks - plan.first_block.back();
    const double again = !backward_ ? 0 : recompute ? blocks : blocks - last;
    plan.pass_flop = tokens * (blocks * (forward + gradient) + again * forward + head);
    plan.statistics_flop = tokens * blocks * statistics;
    plan.solve_flop = SolveFlop(inputs_, row_, options_);
    return plan;
  }

  const PlanInputs& inputs_;
  const QuantizerRow& row_;
  const OptionMap options_;
  const std::vector<const StatisticRow*> statistics_;
  const bool backward_;
  const MemoryModel model_;
};

}  // namespace

absl::StatusOr<Plan> MakePlan(const PlanInputs& inputs) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(inputs.method));
  GRADQ_ASSIGN_OR_RETURN(OptionMap options,
                         ResolveOptions(row->name, row->options, inputs.options));
  GRADQ_RETURN_IF_ERROR(CheckInputs(inputs, *row));
  GRADQ_ASSIGN_OR_RETURN(std::vector<const StatisticRow*> statistics,
                         StatisticsOf(inputs, *row, options));
  return Planner(inputs, *row, std::move(options), std::move(statistics)).Make();
}

}  // namespace gradq
