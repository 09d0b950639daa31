#include "services/worker/task_runner.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/plan.h"
#include "lib/catalog/quantizers.h"
#include "lib/pipeline/linear_solver.h"
#include "services/worker/remote_chunk_reader.h"

namespace gradq {
namespace {

// "backward-1" of "jobs/7/tasks/backward-1".
std::string LastPart(const std::string& task) { return task.substr(task.rfind('/') + 1); }

int RoundOf(const v1::TaskSpec& spec) {
  return spec.has_run_stage() ? spec.run_stage().round() : spec.solve_linear().round();
}

// Remembers what failed, so that a failed task can tell a lost input from a fault of its own.
class RecordingReader : public ChunkReader {
 public:
  RecordingReader(v1::StreamName stream, std::unique_ptr<ChunkReader> reader)
      : stream_(std::move(stream)), reader_(std::move(reader)) {}
  absl::StatusOr<Chunk> Next() override {
    absl::StatusOr<Chunk> chunk = reader_->Next();
    if (!chunk.ok() && !absl::IsOutOfRange(chunk.status()) && !absl::IsCancelled(chunk.status())) {
      failed_ = true;
    }
    return chunk;
  }
  void Cancel() override { reader_->Cancel(); }
  const v1::StreamName& stream() const { return stream_; }
  bool failed() const { return failed_; }

 private:
  const v1::StreamName stream_;
  std::unique_ptr<ChunkReader> reader_;
  std::atomic<bool> failed_ = false;
};

class RecordingWriter : public ChunkWriter {
 public:
  RecordingWriter(std::unique_ptr<ChunkWriter> writer, std::shared_ptr<absl::Status> failure)
      : writer_(std::move(writer)), failure_(std::move(failure)) {}
  absl::StatusOr<std::string> Append(Chunk chunk) override {
    absl::StatusOr<std::string> digest = writer_->Append(std::move(chunk));
    if (!digest.ok()) *failure_ = digest.status();
    return digest;
  }
  absl::Status Complete() override { return writer_->Complete(); }

 private:
  std::unique_ptr<ChunkWriter> writer_;
  std::shared_ptr<absl::Status> failure_;  // shared by all writers of a task, read after it
};

TaskOutcome Failed(v1::FinishTaskRequest::Outcome outcome, absl::Status status) {
  TaskOutcome failed;
  failed.outcome = outcome;
  failed.status = std::move(status);
  return failed;
}

// Of model files and weights: what the network did may pass, what the files hold will not.
TaskOutcome ModelFailed(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return Failed(v1::FinishTaskRequest::FAILED_FATAL, std::move(status));
    default:
      return Failed(v1::FinishTaskRequest::FAILED_RETRYABLE, std::move(status));
  }
}

SolveRecipe RecipeOf(const v1::JobContext& context, Objective objective) {
  const v1::Recipe& recipe = context.spec().recipe();
  SolveRecipe solve;
  solve.method = recipe.method();
  solve.bits = recipe.bits();
  solve.objective = objective;
  solve.groups = recipe.groups();
  solve.options = {recipe.options().begin(), recipe.options().end()};
  solve.sequences = context.plan().sequences();
  solve.length = context.plan().length();
  return solve;
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
  return summary;
}

StageRange RangeOf(const v1::JobPlan& plan, int stage) {
  const bool last = stage + 1 == plan.first_block_size();
  return {plan.first_block(stage), last ? plan.blocks() : plan.first_block(stage + 1)};
}

}  // namespace

// The streams a task reads, from the own store or from other workers.
class TaskRunner::Inputs {
 public:
  absl::StatusOr<ChunkReader*> Open(TaskRunner& runner, const v1::Lease& lease,
                                    const v1::StreamLocation& location) {
    const StreamKey key = FromProto(location.stream());
    std::unique_ptr<ChunkReader> reader;
    if (runner.store_->Contains(key) || location.worker() == runner.session_->id()) {
      absl::StatusOr<std::unique_ptr<ChunkReader>> local = runner.store_->Read(key);
      if (!local.ok()) {
        lost_.push_back(location.stream());
        return local.status();
      }
      reader = *std::move(local);
    } else {
      RemoteReaderOptions options;
      options.read_token = lease.read_token();
      options.insecure = runner.options_.insecure;
      absl::StatusOr<std::unique_ptr<RemoteChunkReader>> remote =
          RemoteChunkReader::Open(key, location.address(), std::move(options));
      if (!remote.ok()) {
        lost_.push_back(location.stream());
        return remote.status();
      }
      reader = *std::move(remote);
    }
    readers_.push_back(std::make_unique<RecordingReader>(location.stream(), std::move(reader)));
    return readers_.back().get();
  }

  std::vector<v1::StreamName> Lost() const {
    std::vector<v1::StreamName> lost = lost_;
    for (const std::unique_ptr<RecordingReader>& reader : readers_) {
      if (reader->failed()) lost.push_back(reader->stream());
    }
    return lost;
  }

  // The class of a task's failure while it computed.
  TaskOutcome Classify(const Attempt& attempt, absl::Status status,
                       const absl::Status& output) const {
    if (attempt.stopped()) {
      return Failed(v1::FinishTaskRequest::STOPPED, absl::CancelledError(attempt.stop_reason()));
    }
    std::vector<v1::StreamName> lost = Lost();
    if (!lost.empty()) {
      TaskOutcome outcome = Failed(v1::FinishTaskRequest::INPUT_LOST, std::move(status));
      outcome.lost_inputs = std::move(lost);
      return outcome;
    }
    // An own stream that was freed under us: the attempt is not wanted any more.
    if (absl::IsNotFound(output)) return Failed(v1::FinishTaskRequest::STOPPED, output);
    if (!output.ok()) return Failed(v1::FinishTaskRequest::FAILED_WORKER, output);
    if (absl::IsInvalidArgument(status)) {
      return Failed(v1::FinishTaskRequest::FAILED_FATAL, std::move(status));
    }
    return Failed(v1::FinishTaskRequest::FAILED_RETRYABLE, std::move(status));
  }

 private:
  std::vector<std::unique_ptr<RecordingReader>> readers_;
  std::vector<v1::StreamName> lost_;
};

TaskOutcome TaskRunner::Run(Attempt& attempt) {
  const v1::Lease& lease = attempt.lease();
  DropEndedJobs();
  service_->AcceptToken(lease.job().name(), lease.read_token());
  if (attempt.stopped()) {
    return Failed(v1::FinishTaskRequest::STOPPED, absl::CancelledError(attempt.stop_reason()));
  }
  if (lease.spec().has_run_stage()) return RunStageTask(attempt);
  if (lease.spec().has_solve_linear()) return SolveTask(attempt);
  return Failed(v1::FinishTaskRequest::FAILED_RETRYABLE,
                absl::UnimplementedError("task kind not known to this worker"));
}

TaskOutcome TaskRunner::RunStageTask(Attempt& attempt) {
  const v1::Lease& lease = attempt.lease();
  const v1::JobContext& context = lease.job();
  const v1::RunStage& spec = lease.spec().run_stage();
  if (spec.stage() < 0 || spec.stage() >= context.plan().first_block_size()) {
    return Failed(v1::FinishTaskRequest::FAILED_FATAL,
                  absl::InvalidArgumentError(StrCat("stage not in the plan: ", spec.stage())));
  }
  if (absl::Status status = OpenModel(context); !status.ok()) return ModelFailed(status);
  if (absl::Status status = ReadTokens(context); !status.ok()) return ModelFailed(status);
  absl::StatusOr<LoadedStage*> stage = StageFor(context, spec);
  if (!stage.ok()) return ModelFailed(stage.status());

  StageTask task;
  task.backward = spec.direction() == v1::RunStage::BACKWARD;
  task.loss = spec.loss();
  task.accumulate = {spec.accumulate().begin(), spec.accumulate().end()};
  task.linears = {spec.linears().begin(), spec.linears().end()};
  task.groups = std::max(1, context.spec().recipe().groups());
  task.sequences = context.plan().sequences();
  task.length = context.plan().length();
  task.chunk_sequences = context.plan().chunk_sequences();

  Inputs inputs;
  auto output_failure = std::make_shared<absl::Status>();
  StageEnds ends;
  if (lease.has_activations()) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(*this, lease, lease.activations());
    if (!reader.ok()) return inputs.Classify(attempt, reader.status(), absl::OkStatus());
    ends.activations = *reader;
  }
  if (lease.has_gradients()) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(*this, lease, lease.gradients());
    if (!reader.ok()) return inputs.Classify(attempt, reader.status(), absl::OkStatus());
    ends.gradients = *reader;
  }
  ends.tokens = job_.tokens;
  ends.open = [&](const std::string& lane) -> absl::StatusOr<std::unique_ptr<ChunkWriter>> {
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ChunkWriter> writer,
                           store_->Create({context.name(), spec.round(), LastPart(lease.task()),
                                           lease.attempt(), lane}));
    return std::make_unique<RecordingWriter>(std::move(writer), output_failure);
  };
  ends.progress = [&](int chunks, const std::string& digest) { attempt.Progress(chunks, digest); };
  ends.cancelled = [&] { return attempt.stopped(); };

  absl::StatusOr<StageResult> result = RunStage(**stage, task, ends, pool_);
  if (!result.ok()) {
    if (absl::IsResourceExhausted(result.status())) stage_ = {};
    return inputs.Classify(attempt, result.status(), *output_failure);
  }
  TaskOutcome outcome;
  outcome.outcome = v1::FinishTaskRequest::SUCCEEDED;
  outcome.result.set_loss_sum(result->loss_sum);
  outcome.result.set_loss_tokens(result->loss_tokens);
  outcome.result.set_compute_seconds(result->compute_seconds);
  return outcome;
}

TaskOutcome TaskRunner::SolveTask(Attempt& attempt) {
  const v1::Lease& lease = attempt.lease();
  if (absl::Status status = OpenModel(lease.job()); !status.ok()) return ModelFailed(status);
  const std::string word = lease.job().spec().recipe().objective();
  const absl::StatusOr<Objective> objective = ParseObjective(word.empty() ? "guided" : word);
  if (!objective.ok()) return ModelFailed(objective.status());

  Inputs inputs;
  ChunkReader* statistics = nullptr;
  if (lease.statistics_size() > 0) {
    absl::StatusOr<ChunkReader*> reader = inputs.Open(*this, lease, lease.statistics(0));
    if (!reader.ok()) return inputs.Classify(attempt, reader.status(), absl::OkStatus());
    statistics = *reader;
  }
  const BaseWeights weights(job_.checkpoint);
  absl::StatusOr<SolvedLinear> solved =
      SolveLinear(weights, RecipeOf(lease.job(), *objective), lease.spec().solve_linear().linear(),
                  statistics, pool_, [&] { return attempt.stopped(); });
  if (!solved.ok()) return inputs.Classify(attempt, solved.status(), absl::OkStatus());

  const absl::Status written = session_->WriteShard(attempt, solved->sha256, solved->shard);
  if (!written.ok()) {
    const bool unwanted = attempt.stopped() || absl::IsAborted(written);
    return Failed(
        unwanted ? v1::FinishTaskRequest::STOPPED : v1::FinishTaskRequest::FAILED_RETRYABLE,
        written);
  }
  TaskOutcome outcome;
  outcome.outcome = v1::FinishTaskRequest::SUCCEEDED;
  *outcome.result.add_shards() = SummaryOf(*solved);
  outcome.result.set_compute_seconds(solved->compute_seconds);
  return outcome;
}

absl::Status TaskRunner::OpenModel(const v1::JobContext& context) {
  if (job_.name == context.name()) return absl::OkStatus();
  stage_ = {};
  job_ = {};
  absl::StatusOr<std::unique_ptr<ReadableFolder>> local = OpenLocalFolder(context.model_path());
  if (local.ok()) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(*std::move(local));
    // A folder of the same name that holds another model is no error: the coordinator has the right
    // one.
    if (checkpoint.ok() && (*checkpoint)->layout_digest() == context.model_digest()) {
      LogInfo("model is read from its local path: ", context.model_path());
      job_.checkpoint = *std::move(checkpoint);
    }
  }
  if (job_.checkpoint == nullptr) {
    LogInfo("model is read through the coordinator: ", context.model_path());
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> remote,
                           OpenRemoteFolder(StrCat(context.name(), ":", context.model_path()),
                                            session_->ModelReader(context.name())));
    GRADQ_ASSIGN_OR_RETURN(job_.checkpoint, Checkpoint::Open(std::move(remote)));
  }
  job_.name = context.name();
  return absl::OkStatus();
}

absl::Status TaskRunner::ReadTokens(const v1::JobContext& context) {
  if (!job_.tokens.empty()) return absl::OkStatus();
  const int64_t count = static_cast<int64_t>(context.plan().sequences()) * context.plan().length();
  if (count <= 0) {
    return absl::InvalidArgumentError(StrCat(
        "calibration set is empty: ", context.plan().sequences(), " x ", context.plan().length()));
  }
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(tokens));
  size_t done = 0;
  GRADQ_RETURN_IF_ERROR(session_->ModelReader(context.name())(
      context.calibration_tokens(), 0, static_cast<int64_t>(bytes.size()),
      [&](const v1::FileChunk& chunk) -> absl::Status {
        const std::string& data = chunk.data();
        if (Xxh3(data) != chunk.xxh3() || chunk.offset() != static_cast<int64_t>(done) ||
            data.size() > bytes.size() - done) {
          return absl::DataLossError(StrCat(
              "calibration tokens are damaged: ", context.calibration_tokens(), ", offset ", done));
        }
        std::memcpy(bytes.data() + done, data.data(), data.size());
        done += data.size();
        return absl::OkStatus();
      }));
  if (done != bytes.size()) {
    return absl::DataLossError(
        StrCat("calibration tokens end early: ", context.calibration_tokens(), ", ", done, " of ",
               bytes.size(), " bytes"));
  }
  const int64_t vocabulary = job_.checkpoint->geometry().vocab_size;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary) {
      return absl::InvalidArgumentError(
          StrCat("calibration token beyond the vocabulary: ", token, " of ", vocabulary));
    }
  }
  job_.tokens = std::move(tokens);
  return absl::OkStatus();
}

bool TaskRunner::NeedsRecompute(const v1::JobContext& context) const {
  if (options_.memory_bytes <= 0) return false;
  const v1::Recipe& recipe = context.spec().recipe();
  PlanInputs inputs;
  inputs.geometry = job_.checkpoint->geometry();
  inputs.recipe.method = recipe.method();
  if (const auto objective = ParseObjective(recipe.objective()); objective.ok()) {
    inputs.recipe.objective = *objective;
  }
  inputs.recipe.options = {recipe.options().begin(), recipe.options().end()};
  inputs.recipe.bits = recipe.bits();
  inputs.recipe.groups = recipe.groups();
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

absl::StatusOr<LoadedStage*> TaskRunner::StageFor(const v1::JobContext& context,
                                                  const v1::RunStage& spec) {
  const StageRange range = RangeOf(context.plan(), spec.stage());
  const std::string dtype = context.spec().compute_dtype();
  const StageSetup setup = {.device = options_.device,
                            .compute_dtype = dtype.empty() ? "float32" : dtype,
                            .recompute = NeedsRecompute(context)};
  if (stage_.stage == nullptr || stage_.job != context.name() || stage_.range != range ||
      stage_.setup != setup) {
    stage_ = {};  // before the next one is loaded: both may not fit
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<LoadedStage> loaded,
                           LoadedStage::Load(BaseWeights(job_.checkpoint), range, setup));
    stage_ = {context.name(), range, setup, std::move(loaded)};
  }
  return stage_.stage.get();
}

void TaskRunner::Finished(const v1::Lease& lease, bool kept) {
  if (kept) return;
  store_->Free(
      {lease.job().name(), RoundOf(lease.spec()), LastPart(lease.task()), lease.attempt(), ""});
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
  if (ended.contains(job_.name)) job_ = {};
}

void TaskRunner::DescribeStreams(v1::HeartbeatRequest* request) {
  request->set_stream_bytes(store_->memory_bytes());
  request->set_spool_bytes(store_->spool_bytes());
}

}  // namespace gradq
