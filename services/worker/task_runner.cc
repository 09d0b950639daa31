#include "services/worker/task_runner.h"

#include <algorithm>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/plan.h"
#include "lib/jobs/plan_messages.h"
#include "services/worker/task_inputs.h"

namespace gradq {
namespace {

using Finish = v1::FinishTaskRequest;

// "backward-1" of "jobs/7/tasks/backward-1".
std::string LastPart(const std::string& task) { return task.substr(task.rfind('/') + 1); }

int RoundIndexOf(const v1::TaskSpec& spec) {
  if (spec.has_run_stage()) return spec.run_stage().round();
  if (spec.has_score_linear()) return spec.score_linear().round();
  return spec.solve_linear().round();
}

// `sequences`: what the statistics were summed over.
absl::StatusOr<SolveRecipe> SolveRecipeOf(const v1::JobContext& context, int64_t sequences) {
  GRADQ_ASSIGN_OR_RETURN(Recipe given, RecipeOf(context.spec().recipe()));
  GRADQ_ASSIGN_OR_RETURN(Recipe recipe, ResolveRecipe(std::move(given)));
  return SolveRecipe{std::move(recipe), sequences, context.plan().length()};
}

SolveDecision DecisionOf(const v1::Lease& lease) {
  SolveDecision decision;
  if (!lease.has_decision()) return decision;
  const v1::LinearDecision& decided = lease.decision();
  if (decided.has_threshold()) decision.threshold = decided.threshold();
  if (decided.has_outlier_fraction()) decision.outlier_fraction = decided.outlier_fraction();
  if (decided.has_variant()) decision.variant = decided.variant();
  return decision;
}

v1::ShardSummary SummaryOf(const SolvedLinear& solved) {
  const QuantizedLinear& linear = solved.linear;
  v1::ShardSummary summary;
  summary.set_linear(linear.name);
  summary.set_sha256(solved.sha256);
  summary.set_bytes(static_cast<int64_t>(solved.shard.size()));
  summary.set_method(linear.record.method);
  summary.set_bits(linear.bits);
  if (linear.record.objective_initial) {
    summary.set_objective_initial(*linear.record.objective_initial);
  }
  if (linear.record.objective_final) summary.set_objective_final(*linear.record.objective_final);
  if (linear.record.predicted_loss_increase) {
    summary.set_predicted_loss_increase(*linear.record.predicted_loss_increase);
  }
  summary.set_average_bits(linear.average_bits());
  summary.set_weights(linear.weights());
  summary.set_outlier_fraction(linear.outlier_fraction());
  summary.set_shrinkage(solved.shrinkage);
  return summary;
}

v1::ScoreSummary SummaryOf(const std::string& linear, const ScoreSummary& scores) {
  v1::ScoreSummary summary;
  summary.set_linear(linear);
  summary.set_weights(scores.weights);
  summary.set_signed_sum(scores.signed_sum);
  summary.set_absolute_sum(scores.absolute_sum);
  for (const int32_t bucket : scores.bucket) summary.add_bucket(bucket);
  for (const int64_t count : scores.count) summary.add_count(count);
  return summary;
}

StageRange RangeOf(const v1::JobPlan& plan, int stage) {
  const bool last = stage + 1 == plan.first_block_size();
  return {plan.first_block(stage), last ? plan.blocks() : plan.first_block(stage + 1)};
}

StageTask StageTaskOf(const v1::JobContext& context, const Round& round, const v1::RunStage& spec) {
  StageTask task;
  task.backward = spec.direction() == v1::RunStage::BACKWARD;
  task.loss = spec.loss();
  task.accumulate = {spec.accumulate().begin(), spec.accumulate().end()};
  task.linears = {spec.linears().begin(), spec.linears().end()};
  task.groups = std::max(1, context.spec().recipe().groups());
  task.coefficients.clear();
  for (const PathNode& node : round.nodes) task.coefficients.push_back(node.coefficient);
  task.gradient_sequences = round.gradient_sequences;
  task.gradient_absolute = round.gradient_absolute;
  task.first_sequence = round.first_sequence;
  task.sequences = round.sequences;
  task.length = context.plan().length();
  task.chunk_sequences = context.plan().chunk_sequences();
  return task;
}

TaskOutcome Fatal(std::string message) {
  return Failed(Finish::FAILED_FATAL, absl::InvalidArgumentError(std::move(message)));
}

}  // namespace

TaskOutcome TaskRunner::Run(Attempt& attempt) {
  const v1::Lease& lease = attempt.lease();
  DropEndedJobs();
  service_->AcceptToken(lease.job().name(), lease.read_token());
  if (attempt.stopped()) {
    return Failed(Finish::STOPPED, absl::CancelledError(attempt.stop_reason()));
  }
  const v1::TaskSpec& spec = lease.spec();
  if (!spec.has_run_stage() && !spec.has_score_linear() && !spec.has_solve_linear()) {
    return Failed(Finish::FAILED_RETRYABLE,
                  absl::UnimplementedError("task kind not known to this worker"));
  }
  const int index = RoundIndexOf(spec);
  if (index < 0 || index >= lease.job().plan().rounds_size()) {
    return Fatal(StrCat("round not in the plan: ", index));
  }
  const Round round = RoundOf(lease.job().plan().rounds(index));
  if (absl::Status status = OpenJob(lease.job()); !status.ok()) return ModelFailed(status);
  if (spec.has_run_stage()) return RunStageTask(attempt, round);
  if (spec.has_score_linear()) return ScoreTask(attempt, round);
  return SolveTask(attempt, round);
}

TaskOutcome TaskRunner::RunStageTask(Attempt& attempt, const Round& round) {
  const v1::Lease& lease = attempt.lease();
  const v1::JobContext& context = lease.job();
  const v1::RunStage& spec = lease.spec().run_stage();
  if (spec.stage() < 0 || spec.stage() >= context.plan().first_block_size()) {
    return Fatal(StrCat("stage not in the plan: ", spec.stage()));
  }
  const StageTask task = StageTaskOf(context, round, spec);
  const bool last = spec.stage() + 1 == context.plan().first_block_size();
  if (task.coefficients.empty() || task.chunk_sequences <= 0 ||
      ChunksOf(task, last) != spec.chunks()) {
    return Fatal(StrCat("chunks of the task are not those of its round: ", spec.chunks()));
  }
  if (absl::Status status = files_.ReadTokens(context, session_); !status.ok()) {
    return ModelFailed(status);
  }

  TaskInputs inputs(lease, store_, session_->id(), options_.insecure);
  auto output_failure = std::make_shared<absl::Status>();
  StageEnds ends;
  if (lease.has_activations()) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(lease.activations());
    if (!reader.ok()) return inputs.Classify(attempt, reader.status());
    ends.activations = *reader;
  }
  if (lease.has_gradients()) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(lease.gradients());
    if (!reader.ok()) return inputs.Classify(attempt, reader.status());
    ends.gradients = *reader;
  }
  ends.tokens = files_.tokens();
  ends.open = [&](const std::string& lane) -> absl::StatusOr<std::unique_ptr<ChunkWriter>> {
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ChunkWriter> writer,
                           store_->Create({context.name(), spec.round(), LastPart(lease.task()),
                                           lease.attempt(), lane}));
    return RecordFailures(std::move(writer), output_failure);
  };
  ends.progress = [&](int chunks, const std::string& digest) { attempt.Progress(chunks, digest); };
  ends.cancelled = [&] { return attempt.stopped(); };

  absl::Status weights_failure;
  const auto stages = [&](int node) {
    absl::StatusOr<LoadedStage*> stage = StageFor(attempt, round, node);
    weights_failure = stage.status();
    return stage;
  };
  absl::StatusOr<StageResult> result = RunStage(stages, task, ends, pool_);
  if (!result.ok()) {
    if (absl::IsResourceExhausted(result.status())) stage_ = {};
    if (!weights_failure.ok() && !attempt.stopped()) return ModelFailed(weights_failure);
    return inputs.Classify(attempt, result.status(), *output_failure);
  }
  TaskOutcome outcome;
  outcome.outcome = Finish::SUCCEEDED;
  if (!result->node_loss_sum.empty()) outcome.result.set_loss_sum(result->node_loss_sum[0]);
  for (const double sum : result->node_loss_sum) outcome.result.add_node_loss_sum(sum);
  outcome.result.set_loss_tokens(result->loss_tokens);
  outcome.result.set_compute_seconds(result->compute_seconds);
  return outcome;
}

TaskOutcome TaskRunner::ScoreTask(Attempt& attempt, const Round& round) {
  const v1::Lease& lease = attempt.lease();
  const std::string& linear = lease.spec().score_linear().linear();
  const absl::StatusOr<SolveRecipe> recipe = SolveRecipeOf(lease.job(), round.sequences);
  if (!recipe.ok()) return ModelFailed(recipe.status());
  TaskInputs inputs(lease, store_, session_->id(), options_.insecure);
  std::shared_ptr<const QuantizedLinear> quantized;
  if (round.weights_round >= 0) {
    absl::StatusOr<std::shared_ptr<const QuantizedLinear>> shard = ShardsOf(attempt, -1)(linear);
    if (!shard.ok()) return inputs.Classify(attempt, shard.status());
    quantized = *std::move(shard);
  }
  ChunkReader* statistics = nullptr;
  if (lease.statistics_size() > 0) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(lease.statistics(0));
    if (!reader.ok()) return inputs.Classify(attempt, reader.status());
    statistics = *reader;
  }
  const absl::StatusOr<ScoredLinear> scored =
      ScoreLinear(BaseWeights(files_.checkpoint()), *recipe, linear, quantized.get(), statistics,
                  pool_, [&] { return attempt.stopped(); });
  if (!scored.ok()) return inputs.Classify(attempt, scored.status());
  TaskOutcome outcome;
  outcome.outcome = Finish::SUCCEEDED;
  *outcome.result.mutable_score() = SummaryOf(linear, scored->summary);
  outcome.result.set_compute_seconds(scored->compute_seconds);
  return outcome;
}

TaskOutcome TaskRunner::SolveTask(Attempt& attempt, const Round& round) {
  const v1::Lease& lease = attempt.lease();
  TaskInputs inputs(lease, store_, session_->id(), options_.insecure);
  ChunkReader* statistics = nullptr;
  if (lease.statistics_size() > 0) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(lease.statistics(0));
    if (!reader.ok()) return inputs.Classify(attempt, reader.status());
    statistics = *reader;
  }
  const absl::StatusOr<std::vector<SolvedLinear>> solved = Solve(attempt, round, statistics);
  if (!solved.ok()) return inputs.Classify(attempt, solved.status());
  if (static_cast<int>(solved->size()) != round.variants) {
    return Fatal(StrCat("plan expects another number of shards per linear: ", round.variants,
                        ", solved ", solved->size()));
  }
  TaskOutcome outcome;
  outcome.outcome = Finish::SUCCEEDED;
  for (const SolvedLinear& variant : *solved) {
    const absl::Status written = session_->WriteShard(attempt, variant.sha256, variant.shard);
    if (!written.ok()) {
      const bool unwanted = attempt.stopped() || absl::IsAborted(written);
      return Failed(unwanted ? Finish::STOPPED : Finish::FAILED_RETRYABLE, written);
    }
    *outcome.result.add_shards() = SummaryOf(variant);
  }
  outcome.result.set_compute_seconds(solved->front().compute_seconds);
  return outcome;
}

absl::StatusOr<std::vector<SolvedLinear>> TaskRunner::Solve(const Attempt& attempt,
                                                            const Round& round,
                                                            ChunkReader* statistics) {
  const v1::Lease& lease = attempt.lease();
  const std::string& linear = lease.spec().solve_linear().linear();
  const int source = round.statistics_round;
  if (source >= lease.job().plan().rounds_size()) {
    return absl::InvalidArgumentError(StrCat("round of the statistics not in the plan: ", source));
  }
  GRADQ_ASSIGN_OR_RETURN(
      SolveRecipe recipe,
      SolveRecipeOf(lease.job(),
                    source < 0 ? round.sequences : lease.job().plan().rounds(source).sequences()));
  if (round.pilot) recipe.recipe = PilotOf(std::move(recipe.recipe));
  const BaseWeights weights(files_.checkpoint());
  if (round.solve == RoundSolve::kDetach) {
    GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<const QuantizedLinear> quantized,
                           ShardsOf(attempt, -1)(linear));
    GRADQ_ASSIGN_OR_RETURN(SolvedLinear detached, DetachLinear(weights, recipe, DecisionOf(lease),
                                                               *quantized, statistics));
    std::vector<SolvedLinear> solved;
    solved.push_back(std::move(detached));
    return solved;
  }
  return SolveLinear(weights, recipe, DecisionOf(lease), linear, statistics, pool_,
                     [&] { return attempt.stopped(); });
}

absl::Status TaskRunner::OpenJob(const v1::JobContext& context) {
  if (files_.job() != context.name()) {
    stage_ = {};
    shards_.Clear();
  }
  return files_.Open(context, session_);
}

QuantizedByName TaskRunner::ShardsOf(const Attempt& attempt, int variant) {
  return [this, &attempt, variant](
             const std::string& linear) -> absl::StatusOr<std::shared_ptr<const QuantizedLinear>> {
    for (const v1::ShardRef& shard : attempt.lease().shards()) {
      if (shard.linear() != linear || shard.variant() != variant) continue;
      return shards_.Get(shard.sha256(),
                         [&] { return session_->ReadShard(attempt, shard.sha256()); });
    }
    return absl::InvalidArgumentError(
        StrCat("lease names no shard of a linear: ", linear, ", variant ", variant));
  };
}

bool TaskRunner::NeedsRecompute(const v1::JobContext& context) const {
  if (options_.memory_bytes <= 0) return false;
  PlanInputs inputs;
  inputs.geometry = files_.checkpoint()->geometry();
  if (absl::StatusOr<Recipe> recipe = RecipeOf(context.spec().recipe()); recipe.ok()) {
    inputs.recipe = *std::move(recipe);
  }
  inputs.sequences = context.plan().sequences();
  inputs.length = context.plan().length();
  inputs.chunk_sequences = context.plan().chunk_sequences();
  inputs.stages = context.plan().first_block_size();
  inputs.compute_bytes = context.spec().compute_dtype() == "bfloat16" ? 2 : 4;
  inputs.worker_memory_bytes = options_.memory_bytes;
  const absl::StatusOr<Plan> plan = MakePlan(inputs);
  // Too small for the plan: the coordinator thought otherwise, so it is tried as thriftily as can
  // be.
  return plan.ok() ? plan->recompute : absl::IsResourceExhausted(plan.status());
}

absl::StatusOr<LoadedStage*> TaskRunner::StageFor(const Attempt& attempt, const Round& round,
                                                  int node) {
  const v1::JobContext& context = attempt.lease().job();
  const StageRange range = RangeOf(context.plan(), attempt.lease().spec().run_stage().stage());
  const std::string dtype = context.spec().compute_dtype();
  const StageSetup setup = {.device = options_.device,
                            .compute_dtype = dtype.empty() ? "float32" : dtype,
                            .recompute = NeedsRecompute(context)};
  const PathNode& point = round.nodes[static_cast<size_t>(node)];
  const bool base = point.t == 0;
  const std::pair weights(base ? -1 : round.weights_round,
                          base ? PathNode{} : PathNode{point.variant, point.t, 0});
  if (stage_.stage == nullptr || stage_.job != context.name() || stage_.range != range ||
      stage_.setup != setup || stage_.weights != weights) {
    stage_ = {};  // before the next one is loaded: both may not fit
    std::unique_ptr<LoadedStage> loaded;
    if (base) {
      GRADQ_ASSIGN_OR_RETURN(loaded,
                             LoadedStage::Load(BaseWeights(files_.checkpoint()), range, setup));
    } else {
      const PathWeights path(files_.checkpoint(), ShardsOf(attempt, point.variant), point.t);
      GRADQ_ASSIGN_OR_RETURN(loaded, LoadedStage::Load(path, range, setup));
    }
    stage_ = {context.name(), range, setup, weights, std::move(loaded)};
  }
  return stage_.stage.get();
}

void TaskRunner::Finished(const v1::Lease& lease, bool kept) {
  if (kept) return;
  store_->Free({lease.job().name(), RoundIndexOf(lease.spec()), LastPart(lease.task()),
                lease.attempt(), ""});
}

void TaskRunner::SessionLost() { store_->Free({}); }

void TaskRunner::Orders(const v1::HeartbeatResponse& response) {
  for (const auto& [job, token] : response.read_tokens()) service_->AcceptToken(job, token);
  for (const v1::StreamName& stream : response.freed()) {
    store_->Free(FromProto(stream));
    if (!stream.task().empty()) continue;
    service_->ForgetJob(stream.job());
    std::lock_guard lock(mutex_);
    ended_jobs_.insert(stream.job());
  }
}

void TaskRunner::DropEndedJobs() {
  std::set<std::string> ended;
  {
    std::lock_guard lock(mutex_);
    ended.swap(ended_jobs_);
  }
  if (ended.contains(stage_.job)) stage_ = {};
  if (ended.contains(files_.job())) {
    files_ = {};
    shards_.Clear();
  }
}

void TaskRunner::DescribeStreams(v1::HeartbeatRequest* request) {
  request->set_stream_bytes(store_->memory_bytes());
  request->set_spool_bytes(store_->spool_bytes());
}

}  // namespace gradq
