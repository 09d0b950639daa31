#include <unistd.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/inspect.h"
#include "services/cli/commands.h"
#include "services/cli/job_client.h"
#include "services/cli/job_flags.h"
#include "services/cli/local_cluster.h"
#include "services/cli/local_job.h"
#include "services/cli/report.h"

namespace gradq {
namespace {

struct QuantizeFlags {
  JobFlags job;
  ClusterOptions cluster;
  bool json = false;
};

LocalJob ToLocalJob(const QuantizeFlags& flags) {
  return {ToSpec(flags.job), flags.job.calibration, flags.job.evaluation, flags.cluster};
}

absl::Status RunQuantize(const QuantizeFlags& flags) {
  const absl::Time start = absl::Now();
  GRADQ_ASSIGN_OR_RETURN(const FinishedJob finished, RunLocalJob(ToLocalJob(flags)));
  GRADQ_ASSIGN_OR_RETURN(auto folder, OpenLocalFolder(finished.job.artifact_path()));
  GRADQ_ASSIGN_OR_RETURN(const Inspection inspection, InspectArtifact(std::move(folder)));
  const double outliers = OutlierFraction(inspection);
  if (flags.json) {
    std::printf("%s\n", QuantizeJson(finished.job, outliers).c_str());
    return absl::OkStatus();
  }
  std::printf(
      "%s",
      QuantizeTable(finished.job, absl::Now() - start, finished.idle_share, outliers).c_str());
  if (!finished.frontier.has_value()) return absl::OkStatus();
  std::printf("\n%s", FrontierTable(finished.job.name(), *finished.frontier).c_str());
  if (flags.cluster.data_folder.empty()) {
    std::printf("Kept with --keep-data DIR, `gradq export` makes each of these points.\n");
  } else {
    std::printf("Another point: gradq export %s --data-dir %s --average-bits B --output OUT\n",
                finished.job.name().c_str(), flags.cluster.data_folder.c_str());
  }
  return absl::OkStatus();
}

std::string InferenceLine(const v1::InferenceMemory& memory) {
  const auto bytes = [](int64_t count) { return FormatBytes(static_cast<double>(count)); };
  return StrCat(bytes(memory.linear_bytes() + memory.kept_bytes()), " (linears ",
                bytes(memory.linear_bytes()), ", embedding, head, norms ",
                bytes(memory.kept_bytes()), "), scratch about ", bytes(memory.scratch_bytes()),
                ", cache ", bytes(memory.cache_bytes_per_token()), " per token, ",
                bytes(memory.cache_bytes()), " at the longest");
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
    GRADQ_ASSIGN_OR_RETURN(spec, PrepareSpec(ToLocalJob(flags), client));
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
  std::string rounds;
  for (const v1::RoundPlan& round : plan.plan().rounds())
    rounds += StrCat(rounds.empty() ? "" : ", ", round.purpose());
  std::printf("rounds                  %s\n", rounds.c_str());
  std::printf("memory per worker       %s (weights %s, activations %s, statistics %s)\n",
              FormatBytes(memory).c_str(),
              FormatBytes(static_cast<double>(plan.weights_bytes())).c_str(),
              FormatBytes(static_cast<double>(plan.activations_bytes())).c_str(),
              FormatBytes(static_cast<double>(plan.statistics_bytes())).c_str());
  std::printf("streams (memory, spool) %s\n",
              FormatBytes(static_cast<double>(plan.spool_bytes())).c_str());
  std::printf("disk at the coordinator %s\n",
              FormatBytes(static_cast<double>(plan.plan().disk_bytes())).c_str());
  std::printf("inference on the CPU    %s\n", InferenceLine(plan.inference_cpu()).c_str());
  std::printf("inference on CUDA       %s\n", InferenceLine(plan.inference_cuda()).c_str());
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
      "--workers 1\n"
      "  gradq quantize --model llama --calibration text.txt --output out --bits 2 --outliers "
      "squeezellm\n"
      "  gradq quantize --model llama --calibration text.txt --output out --average-bits 2.8 "
      "--keep-data kept");
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
  command
      ->add_option("--keep-data", flags->cluster.data_folder,
                   "Keep jobs and shards in this folder: with --average-bits, `gradq frontier` and "
                   "`gradq export` read them later (--data-dir)")
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
