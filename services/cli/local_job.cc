#include "services/cli/local_job.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/cli/progress.h"
#include "services/cli/report.h"
#include "services/rpc/signals.h"

namespace gradq {
namespace {

// The plan counts the workers that are ready when the job leaves QUEUED, so all of ours must be.
absl::Status WaitForWorkers(int workers, JobClient& client, LocalCluster& cluster) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (absl::Now() < deadline) {
    GRADQ_ASSIGN_OR_RETURN(const v1::ListWorkersResponse response, client.Workers());
    const auto ready = std::count_if(
        response.workers().begin(), response.workers().end(), [](const v1::Worker& worker) {
          return worker.kind() == v1::Worker::COMPUTE && worker.state() == v1::Worker::READY;
        });
    if (ready >= workers) return absl::OkStatus();
    GRADQ_RETURN_IF_ERROR(cluster.Supervise());
    if (Signals::Wait(absl::ZeroDuration()) != 0) return absl::CancelledError("interrupted");
    absl::SleepFor(absl::Milliseconds(10));
  }
  return absl::DeadlineExceededError(
      StrCat("workers were not ready in time: ", workers, "\n", cluster.LogTails()));
}

// Watches the job and the children; Ctrl-C and SIGTERM cancel the job first.
absl::StatusOr<v1::Job> Follow(const std::string& name, JobClient& client, LocalCluster& cluster) {
  ProgressView view(ProgressView::StyleForStderr());
  bool interrupted = false;
  absl::StatusOr<v1::Job> job = client.Watch(
      name,
      [&](const v1::Job& update) {
        view.Update(update, absl::Now());
        return true;
      },
      [&]() -> absl::Status {
        if (Signals::Wait(absl::ZeroDuration()) != 0) {
          // A second signal does not wait for the workers.
          if (interrupted) return absl::CancelledError("interrupted twice");
          interrupted = true;
          if (absl::StatusOr<v1::Job> cancelled = client.Cancel(name); !cancelled.ok())
            return cancelled.status();
        }
        return cluster.Supervise();
      });
  view.Clear();
  if (interrupted && (!job.ok() || job->state() != v1::Job::SUCCEEDED))
    return absl::CancelledError("interrupted");
  return job;
}

}  // namespace

absl::StatusOr<std::string> AbsolutePath(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  if (error) return ErrnoToStatus(error.value(), "cannot resolve path", path);
  return absolute.lexically_normal().string();
}

absl::Status CheckFiles(const LocalJob& local) {
  GRADQ_RETURN_IF_ERROR(OpenLocalFolder(local.spec.model()).status());
  GRADQ_RETURN_IF_ERROR(OpenLocalFile(local.calibration).status());
  if (!local.evaluation.empty()) GRADQ_RETURN_IF_ERROR(OpenLocalFile(local.evaluation).status());
  if (local.spec.force() || !PathExists(local.spec.output())) return absl::OkStatus();
  return absl::AlreadyExistsError(
      StrCat("output exists (replace it with --force): ", local.spec.output()));
}

absl::StatusOr<v1::JobSpec> PrepareSpec(const LocalJob& local, JobClient& client) {
  v1::JobSpec spec = local.spec;
  GRADQ_ASSIGN_OR_RETURN(*spec.mutable_model(), AbsolutePath(spec.model()));
  if (!spec.output().empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_output(), AbsolutePath(spec.output()));
  }
  GRADQ_ASSIGN_OR_RETURN(*spec.mutable_calibration_blob(), client.UploadFile(local.calibration));
  if (!local.evaluation.empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_evaluation_blob(), client.UploadFile(local.evaluation));
  }
  return spec;
}

absl::StatusOr<v1::Job> FollowLocalJob(const std::string& name, JobClient& client,
                                       LocalCluster& cluster) {
  GRADQ_ASSIGN_OR_RETURN(const v1::Job job, Follow(name, client, cluster));
  if (job.state() == v1::Job::SUCCEEDED) return job;
  const auto code = static_cast<absl::StatusCode>(job.code());
  return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                      StrCat(job.name(), " failed: ", job.message(), "\n", cluster.LogTails()));
}

absl::StatusOr<FinishedJob> RunLocalJob(const LocalJob& local) {
  const absl::Time start = absl::Now();
  GRADQ_RETURN_IF_ERROR(CheckFiles(local));
  ClusterOptions options = local.cluster;
  options.inference = !local.evaluation.empty();
  GRADQ_ASSIGN_OR_RETURN(LocalCluster cluster, LocalCluster::Start(options));
  GRADQ_ASSIGN_OR_RETURN(JobClient client,
                         JobClient::Connect(cluster.coordinator(), false, absl::Seconds(30)));
  GRADQ_ASSIGN_OR_RETURN(const v1::JobSpec spec, PrepareSpec(local, client));
  GRADQ_RETURN_IF_ERROR(WaitForWorkers(options.workers, client, cluster));
  GRADQ_ASSIGN_OR_RETURN(const v1::Job created, client.Create(spec, NewRequestId()));

  FinishedJob finished;
  GRADQ_ASSIGN_OR_RETURN(finished.job, FollowLocalJob(created.name(), client, cluster));
  const absl::Time end = absl::Now();
  GRADQ_ASSIGN_OR_RETURN(finished.tasks, client.Tasks(created.name()));
  finished.idle_share = IdleShare(finished.tasks, start, end);
  if (spec.recipe().has_average_bits()) {
    // Refused where later rounds' outliers follow from the widths: such a job has no other points.
    absl::StatusOr<v1::Frontier> frontier = client.Frontier(created.name(), 0);
    if (!frontier.ok() && !absl::IsFailedPrecondition(frontier.status())) return frontier.status();
    if (frontier.ok()) finished.frontier = *std::move(frontier);
  }
  return finished;
}

}  // namespace gradq
