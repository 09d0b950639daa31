#pragma once

// The coordinator that a command talks to, by its address, or one started for the command on a kept
// data folder (`gradq quantize --keep-data`).

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "services/cli/job_client.h"
#include "services/cli/local_cluster.h"

namespace gradq {

struct Remote {
  std::string coordinator;
  bool insecure = false;
  std::string data_folder;  // of commands that can start one
};

// --coordinator (required) and --insecure.
void AddRemoteFlags(CLI::App& command, Remote& remote);
// The same, or --data-dir; neither is required.
void AddRemoteOrDataFlags(CLI::App& command, Remote& remote);

absl::StatusOr<JobClient> Connect(const Remote& remote);

// Follows a job of a running coordinator to its end, with progress on stderr. CANCELLED after
// Ctrl-C, which ends the watch and never the job.
absl::StatusOr<v1::Job> WatchJob(JobClient& client, const std::string& name);

struct CoordinatorLink {
  std::unique_ptr<LocalCluster> cluster;  // nullptr: a running one
  JobClient client;
};
// With --data-dir a coordinator on that folder is started, and an inference worker when asked for.
// INVALID_ARGUMENT when neither or both were given; NOT_FOUND when the folder holds no jobs.
absl::StatusOr<CoordinatorLink> OpenCoordinator(const Remote& remote, bool inference);

}  // namespace gradq
