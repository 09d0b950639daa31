#include "lib/pipeline/local_run.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "lib/base/clock.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/catalog/plan.h"

namespace gradq {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(double* seconds) : seconds_(seconds) {}
  ~Stopwatch() { *seconds_ += absl::ToDoubleSeconds(Clock::Real().Monotonic() - started_); }

 private:
  double* const seconds_;
  const absl::Duration started_ = Clock::Real().Monotonic();
};

class Local {
 public:
  Local(const LocalJob& job, ThreadPool* pool) : job_(job), base_(job.checkpoint), pool_(pool) {}

  absl::StatusOr<LocalResult> Execute() {
    GRADQ_RETURN_IF_ERROR(Prepare());
    for (const Round& round : program_) {
      result_.rounds.push_back({.round = round});
      GRADQ_RETURN_IF_ERROR(Execute(&result_.rounds.back()));
      if (!job_.solve) return std::move(result_);
    }
    LocalRound& final = result_.rounds[FinalRound(program_)];
    for (auto& [linear, solved] : final.solved) {
      SolvedLinear& taken = solved[VariantOf(linear, solved.size())];
      result_.predicted_loss_increase += taken.linear.record.predicted_loss_increase.value_or(0);
      result_.linears.emplace(linear, std::move(taken));
    }
    final.solved.clear();
    return std::move(result_);
  }

 private:
  int stages() const { return static_cast<int>(plan_.first_block.size()); }
  bool IsLast(int stage) const { return stage + 1 == stages(); }

  absl::Status Prepare() {
    GRADQ_ASSIGN_OR_RETURN(recipe_, ResolveRecipe(job_.recipe));
    GRADQ_ASSIGN_OR_RETURN(program_, MakeProgram(recipe_, job_.sequences));
    for (const Round& round : program_) {
      if (round.decision != RoundDecision::kNone && job_.decide == nullptr) {
        return absl::UnimplementedError(
            StrCat("a local run decides nothing by itself: ", round.purpose));
      }
    }
    PlanInputs inputs;
    inputs.geometry = base_.geometry();
    inputs.recipe = recipe_;
    inputs.sequences = job_.sequences;
    inputs.length = job_.length;
    inputs.chunk_sequences = job_.chunk_sequences;
    inputs.stages = job_.stages;
    GRADQ_ASSIGN_OR_RETURN(plan_, MakePlan(inputs));
    GRADQ_ASSIGN_OR_RETURN(store_, ChunkStore::Open(job_.streams));
    return absl::OkStatus();
  }

  StageRange RangeOf(int stage) const {
    return {plan_.first_block[stage], IsLast(stage) ? static_cast<int>(base_.geometry().blocks)
                                                    : plan_.first_block[stage + 1]};
  }

  static StreamKey Key(int round, bool backward, int stage, std::string lane = "") {
    return {"local", round, StrCat(backward ? "backward-" : "forward-", round, "-", stage), 1,
            std::move(lane)};
  }
  int IndexOf(const LocalRound& found) const {
    return static_cast<int>(&found - result_.rounds.data());
  }

  absl::Status Execute(LocalRound* found) {
    const Round& round = found->round;
    const int index = IndexOf(*found);
    if (!round.nodes.empty()) GRADQ_RETURN_IF_ERROR(Pass(index, found));
    if (index == 0 && job_.digest_statistics && !round.statistics.empty()) {
      GRADQ_RETURN_IF_ERROR(ForEachLinear([&](const std::string& linear, int stage) {
        return DigestStatistic(linear, StatisticKey(0, stage, linear));
      }));
    }
    if (!job_.solve) return absl::OkStatus();
    if (round.score) {
      const Stopwatch watch(&result_.seconds["score"]);
      GRADQ_RETURN_IF_ERROR(ForEachLinear(
          [&](const std::string& linear, int stage) { return Score(linear, stage, found); }));
    }
    for (auto& [linear, decision] : decisions_) decision = {.variant = decision.variant};
    const bool decides = round.decision != RoundDecision::kNone;
    if (decides && round.decision != RoundDecision::kWidths) {
      GRADQ_RETURN_IF_ERROR(Decide(*found));
    }
    if (round.solve != RoundSolve::kNone) {
      const Stopwatch watch(&result_.seconds["solve"]);
      GRADQ_RETURN_IF_ERROR(ForEachLinear(
          [&](const std::string& linear, int stage) { return Solve(linear, stage, found); }));
    }
    if (round.decision == RoundDecision::kWidths) GRADQ_RETURN_IF_ERROR(Decide(*found));
    FreeStatistics(index);
    return absl::OkStatus();
  }

  absl::Status Decide(const LocalRound& found) {
    GRADQ_ASSIGN_OR_RETURN(const LinearDecisions decided, job_.decide(found));
    for (const auto& [linear, decision] : decided) {
      SolveDecision& all = decisions_[linear];
      if (decision.threshold.has_value()) all.threshold = decision.threshold;
      if (decision.outlier_fraction.has_value()) all.outlier_fraction = decision.outlier_fraction;
      if (decision.variant.has_value()) all.variant = decision.variant;
    }
    return absl::OkStatus();
  }

  // --- the pass ---

  absl::Status Pass(int index, LocalRound* found) {
    const Round& round = found->round;
    for (int stage = 0; stage < stages() - (round.backward ? 1 : 0); ++stage) {
      GRADQ_RETURN_IF_ERROR(RunOne(index, stage, /*backward=*/false, found));
      if (!round.backward && stage > 0) FreeOutput(index, false, stage - 1);
    }
    if (!round.backward) return absl::OkStatus();
    for (int stage = stages() - 1; stage >= 0; --stage) {
      GRADQ_RETURN_IF_ERROR(RunOne(index, stage, /*backward=*/true, found));
      // What only this stage read has no reader left.
      if (!IsLast(stage)) FreeOutput(index, true, stage + 1);
      if (stage > 0) FreeOutput(index, false, stage - 1);
    }
    return absl::OkStatus();
  }

  void FreeOutput(int index, bool backward, int stage) {
    store_->Free(Key(index, backward, stage, std::string(kOutputLane)));
  }

  absl::Status RunOne(int index, int stage, bool backward, LocalRound* found) {
    const Stopwatch watch(&result_.seconds[backward ? "backward" : "forward"]);
    const Round& round = found->round;
    StageTask task;
    task.backward = backward;
    task.loss = IsLast(stage);
    if (backward == round.backward) task.accumulate = round.statistics;
    task.groups = recipe_.groups;
    task.coefficients.clear();
    for (const PathNode& node : round.nodes) task.coefficients.push_back(node.coefficient);
    task.gradient_sequences = round.gradient_sequences;
    task.gradient_absolute = round.gradient_absolute;
    task.first_sequence = round.first_sequence;
    task.sequences = round.sequences;
    task.length = job_.length;
    task.chunk_sequences = job_.chunk_sequences;

    std::unique_ptr<ChunkReader> activations, gradients;
    const std::string out(kOutputLane);
    if (stage > 0) {
      GRADQ_ASSIGN_OR_RETURN(activations, store_->Read(Key(index, false, stage - 1, out)));
    }
    if (backward && !IsLast(stage)) {
      GRADQ_ASSIGN_OR_RETURN(gradients, store_->Read(Key(index, true, stage + 1, out)));
    }
    StageEnds ends;
    ends.activations = activations.get();
    ends.gradients = gradients.get();
    ends.tokens = job_.tokens;
    ends.open = [&](const std::string& lane) {
      return store_->Create(Key(index, backward, stage, lane));
    };
    const auto spooled = [&] {
      result_.spooled_bytes = std::max(result_.spooled_bytes, store_->spool_bytes());
    };
    ends.progress = [&](int, const std::string&) { spooled(); };
    const StageOfNode stages = [&](int node) { return Load(round, round.nodes[node], stage); };
    GRADQ_ASSIGN_OR_RETURN(const StageResult ran, RunStage(stages, task, ends, pool_));
    spooled();
    if (!IsLast(stage)) return absl::OkStatus();
    for (const double sum : ran.node_loss_sum) {
      found->node_loss.push_back(sum / static_cast<double>(ran.loss_tokens));
    }
    if (index == 0) result_.loss = found->node_loss[0];
    return absl::OkStatus();
  }

  absl::StatusOr<LoadedStage*> Load(const Round& round, const PathNode& node, int stage) {
    const std::pair key(node.t == 0 ? -1 : round.weights_round, node);
    if (loaded_ != nullptr && loaded_range_ == RangeOf(stage) && loaded_weights_ == key) {
      return loaded_.get();
    }
    loaded_.reset();
    loaded_range_ = RangeOf(stage);
    loaded_weights_ = key;
    if (node.t == 0) {
      GRADQ_ASSIGN_OR_RETURN(loaded_, LoadedStage::Load(base_, loaded_range_, job_.setup));
      return loaded_.get();
    }
    const PathWeights weights(
        job_.checkpoint,
        [&](const std::string& linear) {
          return Quantized(round.weights_round, linear, node.variant);
        },
        node.t);
    GRADQ_ASSIGN_OR_RETURN(loaded_, LoadedStage::Load(weights, loaded_range_, job_.setup));
    return loaded_.get();
  }

  // --- shards and decisions ---

  size_t VariantOf(const std::string& linear, size_t variants) const {
    const auto decision = decisions_.find(linear);
    if (variants == 1 || decision == decisions_.end()) return 0;
    return static_cast<size_t>(decision->second.variant.value_or(0));
  }

  // Not owned: the rounds hold it as long as this.
  absl::StatusOr<std::shared_ptr<const QuantizedLinear>> Quantized(int round,
                                                                   const std::string& linear,
                                                                   int variant) const {
    const std::vector<SolvedLinear>& solved = result_.rounds[round].solved.at(linear);
    const size_t index =
        variant >= 0 ? static_cast<size_t>(variant) : VariantOf(linear, solved.size());
    return std::shared_ptr<const QuantizedLinear>(std::shared_ptr<void>(), &solved[index].linear);
  }

  SolveRecipe RecipeOf(const Round& round) const { return {recipe_, round.sequences, job_.length}; }

  template <typename Body>
  absl::Status ForEachLinear(Body body) {
    for (int stage = 0; stage < stages(); ++stage) {
      const StageRange range = RangeOf(stage);
      for (int block = range.first_block; block < range.end_block; ++block) {
        for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
          GRADQ_RETURN_IF_ERROR(body(LinearName(block, static_cast<LinearKind>(kind)), stage));
        }
      }
    }
    return absl::OkStatus();
  }

  StreamKey StatisticKey(int round, int stage, const std::string& linear) const {
    return Key(round, program_[round].backward, stage, StatisticLane(linear));
  }

  // nullptr when the round took no statistics.
  absl::StatusOr<std::unique_ptr<ChunkReader>> ReadStatistics(int round, int stage,
                                                              const std::string& linear) {
    if (round < 0 || program_[round].statistics.empty()) return nullptr;
    return store_->Read(StatisticKey(round, stage, linear));
  }

  absl::Status DigestStatistic(const std::string& linear, const StreamKey& key) {
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ChunkReader> reader, store_->Read(key));
    while (true) {
      absl::StatusOr<Chunk> chunk = reader->Next();
      if (absl::IsOutOfRange(chunk.status())) return absl::OkStatus();
      GRADQ_RETURN_IF_ERROR(chunk.status());
      for (const HostTensor& tensor : chunk->tensors) {
        result_.statistics[StrCat(linear, "/", tensor.name)] = chunk->sha256;
      }
    }
  }

  absl::Status Score(const std::string& linear, int stage, LocalRound* found) {
    GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ChunkReader> statistics,
                           ReadStatistics(IndexOf(*found), stage, linear));
    std::shared_ptr<const QuantizedLinear> quantized;
    if (found->round.weights_round >= 0) {
      GRADQ_ASSIGN_OR_RETURN(quantized, Quantized(found->round.weights_round, linear, -1));
    }
    GRADQ_ASSIGN_OR_RETURN(ScoredLinear scored,
                           ScoreLinear(base_, RecipeOf(found->round), linear, quantized.get(),
                                       statistics.get(), pool_, nullptr));
    found->scores[linear] = std::move(scored.summary);
    return absl::OkStatus();
  }

  absl::Status Solve(const std::string& linear, int stage, LocalRound* found) {
    const Round& round = found->round;
    const int source = round.statistics_round;
    GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ChunkReader> statistics,
                           ReadStatistics(source, stage, linear));
    SolveRecipe recipe = RecipeOf(program_[source < 0 ? IndexOf(*found) : source]);
    if (round.pilot) recipe.recipe = PilotOf(std::move(recipe.recipe));
    const SolveDecision decision = decisions_[linear];
    if (round.solve == RoundSolve::kDetach) {
      GRADQ_ASSIGN_OR_RETURN(const auto quantized, Quantized(round.weights_round, linear, -1));
      GRADQ_ASSIGN_OR_RETURN(SolvedLinear detached,
                             DetachLinear(base_, recipe, decision, *quantized, statistics.get()));
      found->solved[linear].push_back(std::move(detached));
      return absl::OkStatus();
    }
    GRADQ_ASSIGN_OR_RETURN(found->solved[linear], SolveLinear(base_, recipe, decision, linear,
                                                              statistics.get(), pool_, nullptr));
    return absl::OkStatus();
  }

  // What no round from here on reads.
  void FreeStatistics(int index) {
    for (int round = 0; round <= index; ++round) {
      bool needed = false;
      for (size_t later = index + 1; later < program_.size(); ++later) {
        needed = needed || program_[later].statistics_round == round;
      }
      for (int stage = 0; stage < stages() && !needed; ++stage) {
        store_->Free(Key(round, program_[round].backward, stage));
      }
    }
  }

  const LocalJob& job_;
  const BaseWeights base_;
  ThreadPool* const pool_;
  Recipe recipe_;
  std::vector<Round> program_;
  Plan plan_;
  std::unique_ptr<ChunkStore> store_;
  std::unique_ptr<LoadedStage> loaded_;
  StageRange loaded_range_;
  std::pair<int, PathNode> loaded_weights_;
  LinearDecisions decisions_;
  LocalResult result_;
};

}  // namespace

double LocalRound::integral() const {
  double sum = 0;
  for (const auto& [linear, summary] : scores) sum += summary.signed_sum;
  return sum;
}

absl::StatusOr<LocalResult> RunLocally(const LocalJob& job, ThreadPool* pool) {
  return Local(job, pool).Execute();
}

}  // namespace gradq
