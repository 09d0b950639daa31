#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/cli/commands.h"
#include "services/cli/job_client.h"
#include "services/cli/job_flags.h"
#include "services/cli/local_cluster.h"
#include "services/cli/progress.h"
#include "services/cli/report.h"
#include "services/rpc/signals.h"

namespace gradq {
namespace {

struct QuantizeFlags {
  JobFlags job;
  ClusterOptions cluster;
  bool json = false;
};

// Paths as the coordinator will see them: absolute, whatever the user's folder is.
absl::StatusOr<std::string> AbsolutePath(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  if (error) return ErrnoToStatus(error.value(), "cannot resolve path", path);
  return absolute.lexically_normal().string();
}

absl::StatusOr<v1::JobSpec> PrepareSpec(const JobFlags& flags, JobClient& client) {
  v1::JobSpec spec = ToSpec(flags);
  GRADQ_ASSIGN_OR_RETURN(*spec.mutable_model(), AbsolutePath(flags.model));
  if (!flags.output.empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_output(), AbsolutePath(flags.output));
  }
  GRADQ_ASSIGN_OR_RETURN(*spec.mutable_calibration_blob(), client.UploadFile(flags.calibration));
  if (!flags.evaluation.empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_evaluation_blob(), client.UploadFile(flags.evaluation));
  }
  return spec;
}

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
absl::StatusOr<v1::Job> Follow(const std::string& name, JobClient& client, LocalCluster& cluster,
                               ProgressView& view) {
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

absl::Status RunQuantize(const QuantizeFlags& flags) {
  const absl::Time start = absl::Now();
  // Cheap refusals before any process starts; the coordinator checks all of it again.
  GRADQ_RETURN_IF_ERROR(OpenLocalFolder(flags.job.model).status());
  GRADQ_RETURN_IF_ERROR(OpenLocalFile(flags.job.calibration).status());
  if (!flags.job.evaluation.empty())
    GRADQ_RETURN_IF_ERROR(OpenLocalFile(flags.job.evaluation).status());
  if (!flags.job.force && PathExists(flags.job.output)) {
    return absl::AlreadyExistsError(
        StrCat("output exists (replace it with --force): ", flags.job.output));
  }

  ClusterOptions options = flags.cluster;
  options.inference = !flags.job.evaluation.empty();
  GRADQ_ASSIGN_OR_RETURN(LocalCluster cluster, LocalCluster::Start(options));
  GRADQ_ASSIGN_OR_RETURN(JobClient client,
                         JobClient::Connect(cluster.coordinator(), false, absl::Seconds(30)));
  GRADQ_ASSIGN_OR_RETURN(const v1::JobSpec spec, PrepareSpec(flags.job, client));
  GRADQ_RETURN_IF_ERROR(WaitForWorkers(options.workers, client, cluster));
  GRADQ_ASSIGN_OR_RETURN(const v1::Job created, client.Create(spec, NewRequestId()));

  ProgressView view(ProgressView::StyleForStderr());
  GRADQ_ASSIGN_OR_RETURN(const v1::Job job, Follow(created.name(), client, cluster, view));
  if (job.state() != v1::Job::SUCCEEDED) {
    const auto code = static_cast<absl::StatusCode>(job.code());
    return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                        StrCat(job.name(), " failed: ", job.message(), "\n", cluster.LogTails()));
  }
  const absl::Time end = absl::Now();
  GRADQ_ASSIGN_OR_RETURN(const std::vector<v1::Task> tasks, client.Tasks(job.name()));
  if (flags.json) {
    std::printf("%s\n", QuantizeJson(job).c_str());
  } else {
    std::printf("%s", QuantizeTable(job, end - start, IdleShare(tasks, start, end)).c_str());
  }
  return absl::OkStatus();
}

absl::Status RunPlan(const QuantizeFlags& flags, const std::string& coordinator, bool insecure) {
  std::unique_ptr<LocalCluster> cluster;
  std::string target = coordinator;
  if (coordinator.empty()) {
    GRADQ_RETURN_IF_ERROR(OpenLocalFolder(flags.job.model).status());
    GRADQ_ASSIGN_OR_RETURN(LocalCluster started, LocalCluster::Start(ClusterOptions{}));
    cluster = std::make_unique<LocalCluster>(std::move(started));
    target = cluster->coordinator();
  }
  GRADQ_ASSIGN_OR_RETURN(JobClient client, JobClient::Connect(target, insecure, absl::Seconds(30)));
  v1::JobSpec spec;
  if (coordinator.empty()) {
    GRADQ_ASSIGN_OR_RETURN(spec, PrepareSpec(flags.job, client));
  } else {
    spec = ToSpec(flags.job);
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_calibration_blob(),
                           client.UploadFile(flags.job.calibration));
  }
  GRADQ_ASSIGN_OR_RETURN(const v1::PlanJobResponse plan, client.Plan(spec, flags.cluster.workers));
  const double memory = static_cast<double>(plan.plan().worker_memory_bytes());
  std::printf("model                   %s\n",
              FormatBytes(static_cast<double>(plan.model_bytes())).c_str());
  std::printf("artifact                %s\n",
              FormatBytes(static_cast<double>(plan.artifact_bytes())).c_str());
  std::printf("linears                 %d in %d blocks, %d stages\n", plan.plan().linears_size(),
              plan.plan().blocks(), plan.plan().first_block_size());
  std::printf("chunks                  %d of %d x %d tokens\n", plan.plan().chunks(),
              plan.plan().chunk_sequences(), plan.plan().length());
  std::printf("memory per worker       %s (weights %s, activations %s, statistics %s)\n",
              FormatBytes(memory).c_str(),
              FormatBytes(static_cast<double>(plan.weights_bytes())).c_str(),
              FormatBytes(static_cast<double>(plan.activations_bytes())).c_str(),
              FormatBytes(static_cast<double>(plan.statistics_bytes())).c_str());
  std::printf("streams (memory, spool) %s\n",
              FormatBytes(static_cast<double>(plan.spool_bytes())).c_str());
  std::printf("disk at the coordinator %s\n",
              FormatBytes(static_cast<double>(plan.plan().disk_bytes())).c_str());
  std::printf("work                    %.2f TFLOP gradients, %.2f statistics, %.2f solve\n",
              plan.pass_flop() * 1e-12, plan.statistics_flop() * 1e-12, plan.solve_flop() * 1e-12);
  if (coordinator.empty()) {
    const double available =
        static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
    if (memory * flags.cluster.workers > available) {
      return absl::ResourceExhaustedError(
          StrCat("the job does not fit this machine's memory: ", flags.cluster.workers,
                 " workers x ", FormatBytes(memory), ", ", FormatBytes(available)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddQuantizeCommand(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command =
      app.add_subcommand("quantize",
                         "Quantize a model on this machine (coordinator, workers and "
                         "inference worker as child processes)");
  command->footer(
      "Examples:\n"
      "  gradq quantize --model llama --calibration text.txt --output llama-3bit --bits 3\n"
      "  gradq quantize --model llama --calibration text.txt --output out --bits 2 --evaluation "
      "valid.txt --json\n"
      "  gradq quantize --model llama --calibration text.txt --output out --method rtn --bits 4 "
      "--workers 1");
  AddJobFlags(*command, flags->job, /*output_required=*/true);
  flags->cluster.workers = 2;
  command->add_option("--workers", flags->cluster.workers, "Worker processes")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option("--threads", flags->cluster.threads,
                   "Cores to share among the processes, 0 for all")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_option("--device", flags->cluster.device, "cpu or cuda:N")->capture_default_str();
  command->add_option("--work-dir", flags->cluster.work_folder, "Parent of the temporary folder")
      ->type_name("DIR");
  command->add_flag("--json", flags->json, "Print the result as one JSON object");
  command->callback([flags, &chosen] { chosen = [flags] { return RunQuantize(*flags); }; });
}

void AddPlanCommand(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<QuantizeFlags>();
  auto coordinator = std::make_shared<std::string>();
  auto insecure = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("plan", "Memory, disk and work of a job before it runs");
  command->footer(
      "Example:\n  gradq plan --model llama --calibration text.txt --bits 3 --workers 2");
  AddJobFlags(*command, flags->job, /*output_required=*/false);
  flags->cluster.workers = 2;
  command->add_option("--workers", flags->cluster.workers, "Workers to plan for")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--coordinator", *coordinator, "Ask this coordinator (default: check here)")
      ->type_name("HOST:PORT");
  command->add_flag("--insecure", *insecure, "Allow plaintext beyond loopback");
  command->callback(
      [=, &chosen] { chosen = [=] { return RunPlan(*flags, *coordinator, *insecure); }; });
}

}  // namespace gradq
