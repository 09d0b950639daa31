#pragma once

// Runs the real `gradq quantize` and looks inside while it runs: its coordinator through the port
// file in the work folder, its servers through /proc. Used by the integration tests; one run at a
// time per object.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"
#include "services/cli/child_process.h"
#include "services/cli/job_client.h"

namespace gradq {

class QuantizeRun {
 public:
  // `folder` is private to the run: output "<folder>/out", log "<folder>/log", temporary files
  // below it.
  static QuantizeRun Start(const std::string& folder, const std::vector<std::string>& arguments);

  // The exit code; 128 + signal for a signalled process; kills it and gives -1 after `timeout`.
  int Wait(absl::Duration timeout);
  bool Running() { return process_.Running(); }
  void Signal(int signal) const { process_.Signal(signal); }

  // Tasks of the only job; empty while there is none.
  std::vector<v1::Task> Tasks();
  // Pid of the server started with `--name NAME` (or of the coordinator); 0 when it does not run.
  int PidOf(const std::string& server) const;
  // Pids of all servers of this run.
  std::vector<int> ServerPids() const;

  std::string output() const { return folder_ + "/out"; }
  std::string Log() const;

 private:
  QuantizeRun(std::string folder, ChildProcess process)
      : folder_(std::move(folder)), process_(std::move(process)) {}
  std::string folder_;
  ChildProcess process_;
  std::optional<JobClient> client_;
};

// A `gradq` command run to its end, at most five minutes.
struct GradqResult {
  int code = 0;
  std::string output;  // stdout and stderr
};
GradqResult RunGradq(const std::vector<std::string>& arguments);

// Name and SHA-256 of each file but report.json, one per line: equal for equal artifacts.
std::string ArtifactListing(const std::string& folder);

}  // namespace gradq
