#include "services/cli/local_cluster.h"

#include <signal.h>

#include <algorithm>
#include <thread>

#include "absl/time/time.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr char kCoordinator[] = "coordinator";
// Who keeps the data folder decides when its shards go: ten years.
constexpr char kRetention[] = "87600h";
constexpr absl::Duration kStopGrace = absl::Seconds(3);

int CoresOr(int threads) {
  if (threads > 0) return threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

absl::Status LocalCluster::Launch(std::string name, std::string binary,
                                  std::vector<std::string> arguments) {
  arguments.push_back("--exit-with-parent");
  absl::StatusOr<ChildProcess> process =
      ChildProcess::Start(binary, arguments, StrCat(work_.path(), "/", name, ".log"));
  if (!process.ok()) return process.status();
  servers_.push_back(
      {std::move(name), std::move(binary), std::move(arguments), *std::move(process)});
  return absl::OkStatus();
}

absl::StatusOr<LocalCluster> LocalCluster::Start(const ClusterOptions& options) {
  GRADQ_ASSIGN_OR_RETURN(WorkFolder work, WorkFolder::Create(options.work_folder));
  LocalCluster cluster(std::move(work));
  const std::string& folder = cluster.work_.path();
  const std::string port_file = folder + "/coordinator.port";
  const std::string data = options.data_folder.empty() ? folder + "/data" : options.data_folder;
  GRADQ_RETURN_IF_ERROR(cluster.Launch(
      kCoordinator, "gradq-coordinator",
      {"--data-dir", data, "--model-root", "/", "--output-root", "/", "--listen", "127.0.0.1:0",
       "--port-file", port_file, "--retention", kRetention, "--log-level", options.log_level}));
  GRADQ_ASSIGN_OR_RETURN(cluster.address_,
                         WaitForPortFile(cluster.servers_[0].process, port_file, kStartTimeout));
  // A coordinator that is started again must be found where it was.
  for (std::string& argument : cluster.servers_[0].arguments) {
    if (argument == "127.0.0.1:0") argument = cluster.address_;
  }

  const int cores = CoresOr(options.threads);
  const int threads = options.workers > 0 ? std::max(1, cores / options.workers) : cores;
  for (int i = 1; i <= options.workers; ++i) {
    const std::string name = StrCat("w", i);
    GRADQ_RETURN_IF_ERROR(
        cluster.Launch(name, "gradq-worker",
                       {"--coordinator", cluster.address_, "--name", name, "--device",
                        options.device, "--threads", StrCat(threads), "--spool-dir",
                        StrCat(folder, "/spool-", name), "--log-level", options.log_level}));
  }
  if (options.inference) {
    GRADQ_RETURN_IF_ERROR(cluster.Launch(
        "inference", "gradq-inference",
        {"--coordinator", cluster.address_, "--name", "inference", "--device", options.device,
         "--threads", StrCat(cores), "--log-level", options.log_level}));
  }
  return cluster;
}

absl::Status LocalCluster::Supervise() {
  for (Server& server : servers_) {
    if (server.process.Running()) continue;
    if (server.restarts == kMaxRestarts) {
      return absl::UnavailableError(StrCat(server.name, " ended ", kMaxRestarts + 1,
                                           " times, last by ", server.process.HowItEnded(), "\n",
                                           server.process.LogTail()));
    }
    ++server.restarts;
    GRADQ_ASSIGN_OR_RETURN(server.process,
                           ChildProcess::Start(server.binary, server.arguments,
                                               StrCat(work_.path(), "/", server.name, ".log")));
  }
  return absl::OkStatus();
}

void LocalCluster::Stop() {
  // Workers first and all at once: they say goodbye to a coordinator that still answers.
  for (Server& server : servers_) {
    if (server.name != kCoordinator) server.process.Signal(SIGTERM);
  }
  for (auto server = servers_.rbegin(); server != servers_.rend(); ++server) {
    server->process.Stop(kStopGrace);
  }
  servers_.clear();
}

std::string LocalCluster::LogTails() const {
  std::string tails;
  for (const Server& server : servers_)
    tails += StrCat("--- ", server.name, "\n", server.process.LogTail());
  return tails;
}

absl::StatusOr<InferenceConnection> InferenceConnection::Open(const std::string& server,
                                                              int threads,
                                                              const std::string& device) {
  InferenceConnection connection;
  if (!server.empty()) {
    connection.address_ = server;
    return connection;
  }
  GRADQ_ASSIGN_OR_RETURN(WorkFolder work, WorkFolder::Create(""));
  connection.work_ = std::make_unique<WorkFolder>(std::move(work));
  const std::string& folder = connection.work_->path();
  const std::string port_file = folder + "/inference.port";
  GRADQ_ASSIGN_OR_RETURN(
      ChildProcess process,
      ChildProcess::Start("gradq-inference",
                          {"--listen", "127.0.0.1:0", "--model-root", "/", "--port-file", port_file,
                           "--device", device, "--threads", StrCat(CoresOr(threads)), "--log-level",
                           "info", "--exit-with-parent"},
                          folder + "/inference.log"));
  connection.process_ = std::make_unique<ChildProcess>(std::move(process));
  GRADQ_ASSIGN_OR_RETURN(connection.address_,
                         WaitForPortFile(*connection.process_, port_file, kStartTimeout));
  return connection;
}

}  // namespace gradq
