#include "lib/jobs/views.h"

#include <algorithm>
#include <charconv>

#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "lib/jobs/round_decision.h"

namespace gradq {
namespace {

constexpr std::string_view kJobs = "jobs/";
constexpr std::string_view kTasks = "/tasks/";

std::string Hex(uint64_t value) {
  char text[17] = {};
  const auto end = std::to_chars(text, text + 16, value, 16);
  return std::string(text, end.ptr);
}

std::string TokenCheck(std::string_view list, std::string_view last) {
  return Hex(Xxh3(StrCat("page|", list, "|", last)));
}

}  // namespace

absl::StatusOr<int64_t> ParseJobName(std::string_view name) {
  int64_t id = 0;
  if (name.substr(0, kJobs.size()) == kJobs) {
    const std::string_view digits = name.substr(kJobs.size());
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), id);
    if (end.ec == std::errc() && end.ptr == digits.data() + digits.size() && id > 0 &&
        digits[0] != '0') {
      return id;
    }
  }
  return absl::InvalidArgumentError(StrCat("not a job name of the form jobs/{number}: ", name));
}

absl::StatusOr<std::string> JobOfTask(std::string_view task) {
  const size_t at = task.find(kTasks);
  if (at == std::string_view::npos || !ParseJobName(task.substr(0, at)).ok()) {
    return absl::InvalidArgumentError(
        StrCat("not a task name of the form jobs/{number}/tasks/{task}: ", task));
  }
  return std::string(task.substr(0, at));
}

absl::StatusOr<int> PageSize(int32_t requested) {
  if (requested < 0) {
    return absl::InvalidArgumentError(StrCat("page_size is negative: ", requested));
  }
  return requested == 0 ? 50 : std::min(requested, 1000);
}

std::string MakePageToken(std::string_view list, std::string_view last) {
  return StrCat(TokenCheck(list, last), ".", last);
}

absl::StatusOr<std::string> ParsePageToken(std::string_view list, const std::string& token) {
  if (token.empty()) return std::string();
  const size_t dot = token.find('.');
  if (dot != std::string::npos) {
    const std::string last = token.substr(dot + 1);
    if (token.substr(0, dot) == TokenCheck(list, last)) return last;
  }
  return absl::InvalidArgumentError(StrCat("page_token is not from this list: ", token));
}

namespace {

// The shard that stands for a linear in the predicted loss so far: of the latest round that priced
// it, the chosen variant; before the choice the uncoupled one, or the widest that is within the
// budget by itself. nullptr: none is solved.
const v1::ShardSummary* CurrentShard(const JobState& job, int l) {
  for (size_t r = job.rounds.size(); r-- > 0;) {
    const int round = static_cast<int>(r), solve = job.linears[l].rounds[r].solve;
    if (solve < 0 || !job.tasks[solve].succeeded()) continue;
    const auto& shards = job.tasks[solve].task().result().shards();
    const int choice = job.rounds[r].choice;
    int variant = 0;
    if (choice >= 0 && job.Decided(choice)) {
      variant = job.ChosenVariant(round, l);
    } else if (job.recipe.average_bits.has_value()) {
      while (variant + 1 < shards.size() &&
             shards[variant + 1].average_bits() <= *job.recipe.average_bits) {
        ++variant;
      }
    }
    if (shards[variant].has_predicted_loss_increase()) return &shards[variant];
  }
  return nullptr;
}

void UpdateLosses(JobState* job) {
  v1::JobProgress& progress = *job->job().mutable_progress();
  double predicted = 0;
  bool known = false;
  for (size_t l = 0; l < job->linears.size(); ++l) {
    const v1::ShardSummary* shard = CurrentShard(*job, static_cast<int>(l));
    if (shard == nullptr) continue;
    known = true;
    predicted += shard->predicted_loss_increase();
  }
  if (known) progress.set_predicted_loss_increase(predicted);
  if (!job->job().spec().source_job().empty() && !job->rounds.empty() && job->Decided(0)) {
    const auto& numbers = job->tasks[job->rounds[0].decide].task().result().decision().numbers();
    progress.set_predicted_loss_increase(numbers.at("predicted_loss_increase"));
  }
  progress.clear_path_checks();
  bool original = false;
  for (size_t r = 0; r < job->rounds.size(); ++r) {
    const int round = static_cast<int>(r);
    const std::vector<PathNode>& nodes = job->rounds[r].plan.nodes;
    for (size_t node = 0; node < nodes.size() && !original; ++node) {
      const std::optional<double> loss = NodeLoss(*job, round, static_cast<int>(node));
      if (nodes[node].t != 0 || !loss) continue;
      progress.set_calibration_loss(*loss);
      original = true;
    }
    if (std::optional<v1::PathCheck> check = CheckPath(*job, round)) {
      *progress.add_path_checks() = *std::move(check);
    }
    if (job->rounds[r].plan.decision == RoundDecision::kShrinkage && job->Decided(round)) {
      const auto& numbers = job->tasks[job->rounds[r].decide].task().result().decision().numbers();
      progress.set_shrinkage(numbers.at("shrinkage"));
    }
  }
}

}  // namespace

void UpdateProgress(JobState* job) {
  v1::JobProgress& progress = *job->job().mutable_progress();
  int done = 0, chunks = 0, chunks_done = 0, solves = 0, solved = 0;
  int round = static_cast<int>(job->rounds.size()) - 1;
  for (const TaskState& task : job->tasks) {
    if (task.succeeded()) {
      ++done;
    } else {
      round = std::min(round, task.round);
    }
    if (task.is_stage()) {
      const int own = task.task().spec().run_stage().chunks();
      chunks += own;
      chunks_done += task.succeeded() ? own : task.task().chunks_done();
    }
    solves += task.is_solve() ? 1 : 0;
    solved += task.is_solve() && task.succeeded() ? 1 : 0;
  }
  progress.set_tasks_total(static_cast<int>(job->tasks.size()));
  progress.set_tasks_done(done);
  progress.set_chunks_total(chunks);
  progress.set_chunks_done(chunks_done);
  progress.set_linears_total(solves);
  progress.set_linears_done(solved);
  if (round >= 0) {
    progress.set_round(round);
    progress.set_purpose(job->rounds[round].plan.purpose);
  }
  UpdateLosses(job);
}

absl::Duration ValidateTimeout(const v1::JobSpec& spec) {
  return absl::Seconds(spec.validate_timeout_s() > 0 ? spec.validate_timeout_s() : 600);
}

std::string EtagOf(const v1::Job& job) {
  return Hex(Xxh3(StrCat("etag|", job.name(), "|", job.revision())));
}

v1::JobContext ContextOf(const JobState& job) {
  v1::JobContext context;
  context.set_name(job.name());
  *context.mutable_spec() = job.job().spec();
  *context.mutable_plan() = job.job().plan();
  context.set_model_path(job.record.model_path());
  context.set_model_digest(job.record.model_digest());
  context.set_calibration_tokens(job.record.calibration_tokens());
  context.set_evaluation_tokens(job.record.evaluation_tokens());
  context.set_evaluation_sequences(job.record.evaluation_sequences());
  context.set_artifact_path(job.job().artifact_path());
  return context;
}

std::string_view PhaseOf(const v1::TaskSpec& spec) {
  switch (spec.kind_case()) {
    case v1::TaskSpec::kRunStage:
      return spec.run_stage().direction() == v1::RunStage::FORWARD ? "forward" : "backward";
    case v1::TaskSpec::kSolveLinear:
      return "solve";
    case v1::TaskSpec::kScoreLinear:
      return "score";
    case v1::TaskSpec::kDecide:
      return "decide";
    case v1::TaskSpec::kAssemble:
      return "assemble";
    case v1::TaskSpec::kValidate:
      return "validate";
    case v1::TaskSpec::KIND_NOT_SET:
      break;
  }
  return "";
}

}  // namespace gradq
