#include "lib/jobs/views.h"

#include <algorithm>
#include <charconv>

#include "lib/base/digest.h"
#include "lib/base/strings.h"

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

void UpdateProgress(JobState* job) {
  v1::JobProgress& progress = *job->job().mutable_progress();
  const int chunks = job->job().plan().chunks();
  int done = 0, chunks_done = 0, linears_done = 0;
  bool predicted_known = false;
  double predicted = 0;
  for (const TaskState& task : job->tasks) {
    if (task.succeeded()) ++done;
    if (task.is_stage()) chunks_done += task.succeeded() ? chunks : task.task().chunks_done();
    const v1::TaskResult& result = task.task().result();
    if (result.loss_tokens() > 0) {
      progress.set_calibration_loss(result.loss_sum() / static_cast<double>(result.loss_tokens()));
    }
    if (!task.task().spec().has_solve_linear() || !task.succeeded()) continue;
    ++linears_done;
    if (result.shards_size() > 0 && result.shards(0).has_predicted_loss_increase()) {
      predicted_known = true;
      predicted += result.shards(0).predicted_loss_increase();
    }
  }
  progress.set_tasks_total(static_cast<int>(job->tasks.size()));
  progress.set_tasks_done(done);
  progress.set_chunks_total(chunks * static_cast<int>(job->stage_order.size()));
  progress.set_chunks_done(chunks_done);
  progress.set_linears_total(static_cast<int>(job->linears.size()));
  progress.set_linears_done(linears_done);
  if (predicted_known) progress.set_predicted_loss_increase(predicted);
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
