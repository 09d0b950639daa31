// A job with mixed widths after its solves: the frontier of its shards, other points of it as jobs
// of their own, and how long the shards stay.

#include <algorithm>
#include <cmath>
#include <set>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/core_internal.h"
#include "lib/jobs/events.h"
#include "lib/jobs/plan_messages.h"
#include "lib/jobs/proto_time.h"
#include "lib/jobs/round_decision.h"
#include "lib/jobs/task_graph.h"
#include "lib/jobs/views.h"

namespace gradq {
namespace {

constexpr int kStandardPoints = 33;
constexpr int kMostPoints = 10'000;

double WeightsOf(const std::vector<PricedLinear>& linears) {
  double weights = 0;
  for (const PricedLinear& linear : linears) {
    weights += static_cast<double>(linear.shards[0]->weights());
  }
  return weights;
}

// What of a spec with source_job must be empty and is not; empty: nothing.
std::string_view SpareField(const v1::JobSpec& spec) {
  v1::Recipe recipe = spec.recipe();
  recipe.clear_average_bits();
  recipe.clear_free_widths();
  if (recipe.ByteSizeLong() > 0) return "recipe";
  if (!spec.model().empty()) return "model";
  if (!spec.calibration_blob().empty()) return "calibration_blob";
  return "";
}

// ln(perplexity / reference) where the job's artifact was validated.
std::optional<double> MeasuredLoss(const v1::Job& job) {
  if (job.validation().state() != v1::Validation::DONE) return std::nullopt;
  const v1::Comparison& found = job.validation().comparison();
  if (!(found.perplexity() > 0) || !(found.reference_perplexity() > 0)) return std::nullopt;
  return std::log(found.perplexity() / found.reference_perplexity());
}

// The decision that says which variants the job's artifact is made of; nullptr before it.
const v1::Decision* WidthsDecision(const JobState& job) {
  for (const RoundState& round : job.rounds) {
    if (round.plan.decision != RoundDecision::kWidths) continue;
    const TaskState& task = job.tasks[round.decide];
    if (task.succeeded()) return &task.task().result().decision();
  }
  return nullptr;
}

v1::Frontier::Point PointAt(const WidthFrontier& frontier, int index,
                            const std::vector<PricedLinear>& linears) {
  v1::Frontier::Point point;
  const WidthFrontier::Point& at = frontier.points()[index];
  point.set_average_bits(static_cast<double>(at.bits) / WeightsOf(linears));
  point.set_predicted_loss_increase(at.loss);
  const std::vector<int> choices = frontier.Choices(index);
  for (const PricedLinear& linear : linears) {
    ++(*point.mutable_linears_by_bits())[linear.shards[choices[linear.tied]]->bits()];
  }
  return point;
}

v1::Frontier::Point PointOf(const JobState& made, const v1::Decision& decision,
                            const std::vector<PricedLinear>& linears) {
  v1::Frontier::Point point;
  point.set_average_bits(decision.numbers().at("average_bits"));
  point.set_predicted_loss_increase(decision.numbers().at("predicted_loss_increase"));
  point.set_job(made.name());
  if (const auto measured = MeasuredLoss(made.job())) point.set_measured_loss_increase(*measured);
  for (size_t l = 0; l < linears.size(); ++l) {
    const int variant = decision.linears(static_cast<int>(l)).variant();
    ++(*point.mutable_linears_by_bits())[linears[l].shards[variant]->bits()];
  }
  return point;
}

}  // namespace

const JobState& CoreImpl::ShardOwner(const JobState& job) const {
  const std::string& source = job.job().spec().source_job();
  if (source.empty()) return job;
  const JobState* owner = FindJob(source);
  GRADQ_CHECK(owner != nullptr);  // jobs stay listed
  return *owner;
}

absl::Status CoreImpl::CheckKeptShards(const JobState& job) const {
  const v1::Job& view = job.job();
  const auto refuse = [&](std::string_view fact) {
    return absl::FailedPreconditionError(StrCat(fact, ": ", job.name()));
  };
  if (!view.spec().source_job().empty()) {
    return refuse(
        StrCat("the job has no shards of its own, name its source ", view.spec().source_job()));
  }
  if (!view.spec().recipe().has_average_bits()) return refuse("the job has no mixed widths");
  const int round = WidthsRound(job);
  if (round < 0 || !job.Solved(round)) return refuse("the job's linears are not all solved");
  if (round != job.final_round) {
    return refuse("the job's outliers follow from its widths, so that other widths need a new job");
  }
  if (IsTerminal(view.state()) && !view.has_shards_expire_time()) {
    return refuse("the job's shards are removed");
  }
  return absl::OkStatus();
}

// --- another point ---

absl::Status CoreImpl::FillFromSource(v1::JobRecord* record) const {
  v1::JobSpec& spec = *record->mutable_job()->mutable_spec();
  const std::string name = spec.source_job();
  if (const std::string_view spare = SpareField(spec); !spare.empty()) {
    return absl::InvalidArgumentError(
        StrCat("a job with source_job takes this from it, leave it empty: ", spare));
  }
  if (!spec.recipe().has_average_bits()) {
    return absl::InvalidArgumentError("a job with source_job needs recipe.average_bits");
  }
  GRADQ_RETURN_IF_ERROR(GetJob(name).status());
  const JobState& source = *FindJob(name);
  GRADQ_RETURN_IF_ERROR(CheckKeptShards(source));
  if (source.job().state() != v1::Job::SUCCEEDED) {
    return absl::FailedPreconditionError(StrCat("the source job has not succeeded: ", name, ", ",
                                                v1::Job::State_Name(source.job().state())));
  }
  const v1::JobSpec asked = spec;
  spec = source.job().spec();
  spec.set_source_job(name);
  spec.mutable_recipe()->set_average_bits(asked.recipe().average_bits());
  if (asked.recipe().free_widths()) spec.mutable_recipe()->set_free_widths(true);
  spec.set_evaluation_blob(asked.evaluation_blob());
  spec.set_evaluation_sequences(asked.evaluation_sequences());
  spec.set_validate_timeout_s(asked.validate_timeout_s());
  spec.set_output(asked.output());
  spec.set_force(asked.force());
  record->set_config_json(source.record.config_json());
  record->set_model_path(source.record.model_path());
  record->set_model_digest(source.record.model_digest());
  record->mutable_job()->mutable_progress()->set_original_bytes(
      source.job().progress().original_bytes());
  // Refused now rather than as a failed job.
  return DecideWidths(PricedLinears(source, spec.recipe().free_widths()),
                      spec.recipe().average_bits())
      .status();
}

void CoreImpl::StartPoint(JobState* job) {
  v1::JobPlan& plan = *job->job().mutable_plan();
  plan = ShardOwner(*job).job().plan();
  plan.clear_statistics();
  plan.clear_needs_backward();
  plan.clear_rounds();
  Round choose;
  choose.purpose = "choose widths";
  choose.decision = RoundDecision::kWidths;
  *plan.add_rounds() = MessageOf(choose);
  absl::StatusOr<ModelGeometry> geometry = ParseGeometry(job->record.config_json());
  absl::Status built = geometry.ok() ? BuildTaskGraph(*geometry, job) : geometry.status();
  if (!built.ok()) {
    FailJob(job, static_cast<int>(built.code()), std::string(built.message()));
    return;
  }
  job->job().set_state(v1::Job::RUNNING);
  *job->job().mutable_start_time() = ToTimestamp(now_.wall);
  for (size_t i = 0; i < job->tasks.size(); ++i) TouchTask(job, static_cast<int>(i));
  Event(job, job->name(), events::kJobRunning,
        StrCat("widths from the shards of ", job->job().spec().source_job()));
  TouchJob(*job);
  SettleJob(job);
}

// --- the frontier ---

absl::StatusOr<v1::Frontier> CoreImpl::GetFrontier(const v1::GetFrontierRequest& request) const {
  GRADQ_RETURN_IF_ERROR(GetJob(request.name()).status());
  const JobState& job = *FindJob(request.name());
  GRADQ_RETURN_IF_ERROR(CheckKeptShards(job));
  if (request.max_points() < 0) {
    return absl::InvalidArgumentError(StrCat("max_points is negative: ", request.max_points()));
  }
  const int most = request.max_points() == 0 ? kStandardPoints
                                             : std::min<int>(request.max_points(), kMostPoints);
  const std::vector<PricedLinear> linears = PricedLinears(job, job.recipe.free_widths);
  GRADQ_ASSIGN_OR_RETURN(const WidthFrontier frontier, FrontierOf(linears));
  const double weights = WeightsOf(linears),
               least = static_cast<double>(frontier.points().front().bits),
               last = static_cast<double>(frontier.points().back().bits);
  v1::Frontier answer;
  answer.set_least_bits(least / weights);
  answer.set_most_bits(last / weights);
  std::vector<v1::Frontier::Point> points;
  for (const auto& [id, made] : jobs_) {
    const bool of_this =
        id == *ParseJobName(job.name()) || made.job().spec().source_job() == job.name();
    if (!of_this || made.job().artifact_digest().empty()) continue;
    if (const v1::Decision* decision = WidthsDecision(made)) {
      points.push_back(PointOf(made, *decision, linears));
    }
  }
  std::set<int> chosen;
  for (int i = 0; i < most; ++i) {
    const double share = most == 1 ? 0 : static_cast<double>(i) / (most - 1);
    chosen.insert(frontier.Best(least + (last - least) * share));
  }
  for (const int index : chosen) {
    v1::Frontier::Point point = PointAt(frontier, index, linears);
    const bool made = std::any_of(points.begin(), points.end(), [&](const auto& other) {
      return std::llround(other.average_bits() * weights) == frontier.points()[index].bits;
    });
    if (!made) points.push_back(std::move(point));
  }
  std::stable_sort(points.begin(), points.end(), [](const auto& a, const auto& b) {
    return a.average_bits() < b.average_bits();
  });
  for (v1::Frontier::Point& point : points) *answer.add_points() = std::move(point);
  return answer;
}

// --- retention ---

void CoreImpl::ExpireShards(JobState* job) {
  if (!IsTerminal(job->job().state()) || !job->job().has_shards_expire_time()) return;
  if (now_.wall < FromTimestamp(job->job().shards_expire_time())) return;
  const bool used = std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
    const v1::Job& other = entry.second.job();
    return other.spec().source_job() == job->name() && !IsTerminal(other.state());
  });
  if (used) return;
  job->job().clear_shards_expire_time();
  staged_actions_.push_back(RemoveJobData{job->name(), true});
  Event(job, job->name(), events::kJobShardsRemoved, "");
  TouchJob(*job);
}

}  // namespace gradq
