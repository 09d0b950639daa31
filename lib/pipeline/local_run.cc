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

class Local {
 public:
  Local(const LocalJob& job, ThreadPool* pool) : job_(job), weights_(job.checkpoint), pool_(pool) {}

  absl::StatusOr<LocalResult> Execute() {
    GRADQ_RETURN_IF_ERROR(Prepare());
    const int stages = static_cast<int>(plan_.first_block.size());
    if (plan_.needs_backward) {
      for (int stage = 0; stage + 1 < stages; ++stage) {
        GRADQ_RETURN_IF_ERROR(Pass(stage, /*backward=*/false, /*accumulate=*/false));
      }
      for (int stage = stages - 1; stage >= 0; --stage) {
        GRADQ_RETURN_IF_ERROR(Pass(stage, /*backward=*/true, /*accumulate=*/true));
        GRADQ_RETURN_IF_ERROR(SolveStage(stage, Key("backward", stage)));
        // What only this stage read has no reader left.
        if (stage + 1 < stages) store_->Free(Key("backward", stage + 1));
        if (stage > 0) store_->Free(Key("forward", stage - 1));
      }
    } else {
      for (int stage = 0; stage < stages; ++stage) {
        if (!plan_.statistics.empty()) {
          GRADQ_RETURN_IF_ERROR(Pass(stage, /*backward=*/false, /*accumulate=*/true));
        }
        GRADQ_RETURN_IF_ERROR(SolveStage(stage, Key("forward", stage)));
        if (stage > 0) store_->Free(Key("forward", stage - 1));
      }
    }
    if (loss_tokens_ > 0) result_.loss = loss_sum_ / static_cast<double>(loss_tokens_);
    return std::move(result_);
  }

 private:
  absl::Status Prepare() {
    PlanInputs inputs;
    inputs.geometry = weights_.geometry();
    inputs.recipe.method = job_.recipe.method;
    inputs.recipe.objective = job_.recipe.objective;
    inputs.recipe.options = job_.recipe.options;
    inputs.recipe.bits = job_.recipe.bits;
    inputs.recipe.groups = job_.recipe.groups;
    inputs.sequences = job_.recipe.sequences;
    inputs.length = job_.recipe.length;
    inputs.chunk_sequences = job_.chunk_sequences;
    inputs.stages = job_.stages;
    GRADQ_ASSIGN_OR_RETURN(plan_, MakePlan(inputs));
    GRADQ_ASSIGN_OR_RETURN(store_, ChunkStore::Open(job_.streams));
    return absl::OkStatus();
  }

  StageRange RangeOf(int stage) const {
    const bool last = stage + 1 == static_cast<int>(plan_.first_block.size());
    return {plan_.first_block[stage],
            last ? static_cast<int>(weights_.geometry().blocks) : plan_.first_block[stage + 1]};
  }

  StreamKey Key(const char* direction, int stage, std::string lane = "") const {
    return {"local", 0, StrCat(direction, "-", stage), 1, std::move(lane)};
  }

  absl::Status Pass(int stage, bool backward, bool accumulate) {
    const absl::Duration started = Clock::Real().Monotonic();
    const bool last = stage + 1 == static_cast<int>(plan_.first_block.size());
    if (loaded_ == nullptr || loaded_range_ != RangeOf(stage)) {
      loaded_.reset();
      loaded_range_ = RangeOf(stage);
      GRADQ_ASSIGN_OR_RETURN(loaded_, LoadedStage::Load(weights_, loaded_range_, job_.setup));
    }
    StageTask task;
    task.backward = backward;
    task.loss = last && (backward || !plan_.needs_backward);
    if (accumulate) task.accumulate = plan_.statistics;
    task.groups = job_.recipe.groups;
    task.sequences = job_.recipe.sequences;
    task.length = job_.recipe.length;
    task.chunk_sequences = job_.chunk_sequences;

    std::unique_ptr<ChunkReader> activations, gradients;
    if (stage > 0) {
      GRADQ_ASSIGN_OR_RETURN(activations,
                             store_->Read(Key("forward", stage - 1, std::string(kOutputLane))));
    }
    if (backward && !last) {
      GRADQ_ASSIGN_OR_RETURN(gradients,
                             store_->Read(Key("backward", stage + 1, std::string(kOutputLane))));
    }
    const char* direction = backward ? "backward" : "forward";
    StageEnds ends;
    ends.activations = activations.get();
    ends.gradients = gradients.get();
    ends.tokens = job_.tokens;
    ends.open = [&](const std::string& lane) {
      return store_->Create(Key(direction, stage, lane));
    };
    ends.progress = [&](int, const std::string&) {
      result_.spooled_bytes = std::max(result_.spooled_bytes, store_->spool_bytes());
    };
    GRADQ_ASSIGN_OR_RETURN(const StageResult ran, RunStage(*loaded_, task, ends, pool_));
    result_.spooled_bytes = std::max(result_.spooled_bytes, store_->spool_bytes());
    loss_sum_ += ran.loss_sum;
    loss_tokens_ += ran.loss_tokens;
    result_.seconds[direction] += absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
    return absl::OkStatus();
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

  absl::Status SolveStage(int stage, StreamKey key) {
    const StageRange range = RangeOf(stage);
    for (int block = range.first_block; block < range.end_block; ++block) {
      for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
        const std::string linear = LinearName(block, static_cast<LinearKind>(kind));
        key.lane = StatisticLane(linear);
        if (job_.digest_statistics && !plan_.statistics.empty()) {
          GRADQ_RETURN_IF_ERROR(DigestStatistic(linear, key));
        }
        if (job_.solve) GRADQ_RETURN_IF_ERROR(Solve(linear, key));
        store_->Free(key);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Solve(const std::string& linear, const StreamKey& key) {
    const absl::Duration started = Clock::Real().Monotonic();
    std::unique_ptr<ChunkReader> statistics;
    if (!plan_.statistics.empty()) {
      GRADQ_ASSIGN_OR_RETURN(statistics, store_->Read(key));
    }
    GRADQ_ASSIGN_OR_RETURN(SolvedLinear solved, SolveLinear(weights_, job_.recipe, linear,
                                                            statistics.get(), pool_, nullptr));
    result_.predicted_loss_increase += solved.linear.record.predicted_loss_increase.value_or(0);
    result_.linears.emplace(linear, std::move(solved));
    result_.seconds["solve"] += absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
    return absl::OkStatus();
  }

  const LocalJob& job_;
  const BaseWeights weights_;
  ThreadPool* const pool_;
  Plan plan_;
  std::unique_ptr<ChunkStore> store_;
  std::unique_ptr<LoadedStage> loaded_;
  StageRange loaded_range_;
  double loss_sum_ = 0;
  int64_t loss_tokens_ = 0;
  LocalResult result_;
};

}  // namespace

absl::StatusOr<LocalResult> RunLocally(const LocalJob& job, ThreadPool* pool) {
  return Local(job, pool).Execute();
}

}  // namespace gradq
