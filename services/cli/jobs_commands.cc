#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/time_util.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/cli/commands.h"
#include "services/cli/job_client.h"
#include "services/cli/job_flags.h"
#include "services/cli/progress.h"
#include "services/cli/remote.h"

namespace gradq {
namespace {

std::string StateName(v1::Job::State state) { return v1::Job::State_Name(state); }

void PrintLine(const v1::Job& job) {
  const v1::JobProgress& progress = job.progress();
  std::printf("%-12s %-11s %3d %%  %d/%d linears  %s\n", job.name().c_str(),
              StateName(job.state()).c_str(), static_cast<int>(100 * FractionDone(job)),
              progress.linears_done(), progress.linears_total(), job.message().c_str());
}

absl::Status PrintJson(const google::protobuf::Message& message) {
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) return absl::InternalError(status.ToString());
  std::printf("%s\n", json.c_str());
  return absl::OkStatus();
}

absl::Status WatchAndPrint(JobClient& client, const std::string& name) {
  GRADQ_ASSIGN_OR_RETURN(const v1::Job job, WatchJob(client, name));
  PrintLine(job);
  if (job.state() == v1::Job::SUCCEEDED) return absl::OkStatus();
  return absl::AbortedError(
      StrCat(name, " ended as ", StateName(job.state()), ": ", job.message()));
}

struct SubmitFlags {
  JobFlags job;
  Remote remote;
  std::string request_id;
  bool watch = false;
  bool json = false;
};

absl::Status RunSubmit(const SubmitFlags& flags) {
  GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(flags.remote));
  v1::JobSpec spec = ToSpec(flags.job);
  GRADQ_ASSIGN_OR_RETURN(*spec.mutable_calibration_blob(),
                         client.UploadFile(flags.job.calibration));
  if (!flags.job.evaluation.empty()) {
    GRADQ_ASSIGN_OR_RETURN(*spec.mutable_evaluation_blob(),
                           client.UploadFile(flags.job.evaluation));
  }
  GRADQ_ASSIGN_OR_RETURN(
      const v1::Job job,
      client.Create(spec, flags.request_id.empty() ? NewRequestId() : flags.request_id));
  if (flags.json) {
    GRADQ_RETURN_IF_ERROR(PrintJson(job));
  } else {
    std::printf("%s\n", job.name().c_str());
    std::fflush(stdout);
  }
  return flags.watch ? WatchAndPrint(client, job.name()) : absl::OkStatus();
}

absl::Status RunList(const Remote& remote, bool json) {
  GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(remote));
  v1::ListJobsRequest request;
  request.set_page_size(100);
  do {
    GRADQ_ASSIGN_OR_RETURN(const v1::ListJobsResponse response, client.List(request));
    for (const v1::Job& job : response.jobs()) {
      if (json) {
        GRADQ_RETURN_IF_ERROR(PrintJson(job));
      } else {
        PrintLine(job);
      }
    }
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

void PrintJob(const v1::Job& job, const std::vector<v1::Task>& tasks) {
  PrintLine(job);
  const v1::JobProgress& progress = job.progress();
  if (progress.has_calibration_loss())
    std::printf("  calibration loss         %.4f\n", progress.calibration_loss());
  if (progress.has_predicted_loss_increase()) {
    std::printf("  predicted loss increase  %.4f\n", progress.predicted_loss_increase());
  }
  if (job.plan().rounds_size() > 1 && job.state() == v1::Job::RUNNING) {
    std::printf("  round                    %d of %d, %s\n", progress.round() + 1,
                job.plan().rounds_size(), progress.purpose().c_str());
  }
  for (const v1::PathCheck& check : progress.path_checks()) {
    std::printf("  loss path, round %-7d integral %.4f, measured %.4f\n", check.round() + 1,
                check.integral(), check.measured());
  }
  if (job.has_shards_expire_time()) {
    std::printf("  shards kept until        %s\n",
                google::protobuf::util::TimeUtil::ToString(job.shards_expire_time()).c_str());
  }
  if (!job.artifact_path().empty())
    std::printf("  artifact                 %s\n", job.artifact_path().c_str());
  for (const v1::Task& task : tasks) {
    if (task.state() == v1::Task::SUCCEEDED || task.state() == v1::Task::PENDING) continue;
    std::printf("  %-40s %-9s attempt %lld on %s %s\n", task.name().c_str(),
                v1::Task::State_Name(task.state()).c_str(), static_cast<long long>(task.attempt()),
                task.worker().c_str(), task.message().c_str());
  }
}

}  // namespace

void AddSubmitCommand(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<SubmitFlags>();
  CLI::App* command = app.add_subcommand("submit", "Submit a job to a running coordinator");
  command->footer(
      "A job file holds the flags as YAML keys; flags given beside it win. --model and --output "
      "are paths on the\n"
      "coordinator (below its --model-root and --output-root), the texts are uploaded.\n"
      "Examples:\n"
      "  gradq submit job.yaml --coordinator 10.0.0.5:7070 --watch\n"
      "  gradq submit --model llama --calibration text.txt --output llama-3bit --coordinator "
      "localhost:7070");
  AddJobFlags(*command, flags->job, /*output_required=*/false);
  AddRemoteFlags(*command, flags->remote);
  command->add_option("--request-id", flags->request_id,
                      "The same id makes the same job (default: random)");
  command->add_flag("--watch", flags->watch, "Follow the job to its end");
  command->add_flag("--json", flags->json, "Print the job as JSON");
  command->callback([flags, &chosen] { chosen = [flags] { return RunSubmit(*flags); }; });
}

void AddJobsCommands(CLI::App& app, Command& chosen) {
  struct Flags {
    Remote remote;
    std::string name;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* jobs = app.add_subcommand("jobs", "List, show, watch and cancel jobs of a coordinator");
  jobs->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, bool takes_job, auto run) {
    CLI::App* command = jobs->add_subcommand(name, help);
    AddRemoteFlags(*command, flags->remote);
    if (takes_job) command->add_option("job", flags->name, "Job name, jobs/ID")->required();
    command->add_flag("--json", flags->json, "Print JSON");
    command->callback([flags, run, &chosen] { chosen = [flags, run] { return run(*flags); }; });
  };
  add("list", "Jobs, newest first", false,
      [](const Flags& f) { return RunList(f.remote, f.json); });
  add("get", "One job and its open tasks", true, [](const Flags& f) -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(f.remote));
    GRADQ_ASSIGN_OR_RETURN(const v1::Job job, client.Get(f.name));
    if (f.json) return PrintJson(job);
    GRADQ_ASSIGN_OR_RETURN(const std::vector<v1::Task> tasks, client.Tasks(f.name));
    PrintJob(job, tasks);
    return absl::OkStatus();
  });
  add("watch", "Follow a job to its end", true, [](const Flags& f) -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(f.remote));
    return WatchAndPrint(client, f.name);
  });
  add("cancel", "Cancel a job", true, [](const Flags& f) -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(f.remote));
    GRADQ_ASSIGN_OR_RETURN(const v1::Job job, client.Cancel(f.name));
    if (f.json) return PrintJson(job);
    PrintLine(job);
    return absl::OkStatus();
  });
}

void AddDownloadCommand(CLI::App& app, Command& chosen) {
  struct Flags {
    Remote remote;
    std::string name;
    std::string folder;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("download", "Copy a job's artifact to a folder here");
  command->footer("Example:\n  gradq download jobs/1 llama-3bit --coordinator localhost:7070");
  AddRemoteFlags(*command, flags->remote);
  command->add_option("job", flags->name, "Job name, jobs/ID")->required();
  command->add_option("folder", flags->folder, "Folder to make")->required();
  command->callback([flags, &chosen] {
    chosen = [flags]() -> absl::Status {
      GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(flags->remote));
      return client.Download(flags->name, flags->folder, /*replace=*/false);
    };
  });
}

}  // namespace gradq
