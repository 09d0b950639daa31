#include "services/cli/remote.h"

#include <utility>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/cli/local_job.h"
#include "services/cli/progress.h"
#include "services/rpc/signals.h"

namespace gradq {
namespace {

CLI::Option* AddCoordinatorFlag(CLI::App& command, Remote& remote) {
  command.add_flag("--insecure", remote.insecure, "Allow plaintext beyond loopback");
  return command.add_option("--coordinator", remote.coordinator, "Address of the coordinator")
      ->type_name("HOST:PORT")
      ->envname("GRADQ_COORDINATOR");
}

}  // namespace

void AddRemoteFlags(CLI::App& command, Remote& remote) {
  AddCoordinatorFlag(command, remote)->required();
}

void AddRemoteOrDataFlags(CLI::App& command, Remote& remote) {
  AddCoordinatorFlag(command, remote);
  command
      .add_option("--data-dir", remote.data_folder,
                  "Folder kept by `gradq quantize --keep-data`; a coordinator is started on it")
      ->type_name("DIR");
}

absl::StatusOr<JobClient> Connect(const Remote& remote) {
  return JobClient::Connect(remote.coordinator, remote.insecure, absl::Seconds(10));
}

absl::StatusOr<v1::Job> WatchJob(JobClient& client, const std::string& name) {
  ProgressView view(ProgressView::StyleForStderr());
  return client.Watch(
      name,
      [&](const v1::Job& update) {
        view.Update(update, absl::Now());
        return true;
      },
      []() -> absl::Status {
        if (Signals::Wait(absl::ZeroDuration()) == 0) return absl::OkStatus();
        return absl::CancelledError("stopped watching; the job goes on");
      });
}

absl::StatusOr<CoordinatorLink> OpenCoordinator(const Remote& remote, bool inference) {
  if (remote.data_folder.empty()) {
    if (remote.coordinator.empty()) {
      return absl::InvalidArgumentError(
          "a job needs --coordinator HOST:PORT or --data-dir DIR to be found");
    }
    GRADQ_ASSIGN_OR_RETURN(JobClient client, Connect(remote));
    return CoordinatorLink{nullptr, std::move(client)};
  }
  // An empty folder would become a new coordinator's.
  if (!PathExists(remote.data_folder + "/jobs.sqlite")) {
    return absl::NotFoundError(StrCat("folder holds no jobs: ", remote.data_folder));
  }
  ClusterOptions options;
  GRADQ_ASSIGN_OR_RETURN(options.data_folder, AbsolutePath(remote.data_folder));
  options.inference = inference;
  GRADQ_ASSIGN_OR_RETURN(LocalCluster cluster, LocalCluster::Start(options));
  GRADQ_ASSIGN_OR_RETURN(JobClient client,
                         JobClient::Connect(cluster.coordinator(), false, absl::Seconds(30)));
  return CoordinatorLink{std::make_unique<LocalCluster>(std::move(cluster)), std::move(client)};
}

}  // namespace gradq
