#pragma once

// A whole cluster on loopback as child processes: what `gradq quantize` runs on. The path from here
// on is the one of a real cluster.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/cli/child_process.h"

namespace gradq {

struct ClusterOptions {
  int workers = 0;  // 0: only a coordinator (`gradq plan`)
  bool inference = false;
  int threads = 0;  // cores to share; 0: all
  std::string device = "cpu";
  std::string work_folder;  // parent of the private folder; empty: the system's temporary folder
  // The coordinator's jobs, texts and shards; stays. Empty: in the private folder, removed at the
  // end.
  std::string data_folder;
  std::string log_level = "info";
};

class LocalCluster {
 public:
  // Starts the coordinator and waits for it, then starts the others without waiting.
  static absl::StatusOr<LocalCluster> Start(const ClusterOptions& options);

  const std::string& coordinator() const { return address_; }
  // Starts a dead child again, at most kMaxRestarts times each; then UNAVAILABLE with how it ended
  // and its last log lines.
  absl::Status Supervise();
  LocalCluster(LocalCluster&&) = default;
  LocalCluster& operator=(LocalCluster&&) = delete;
  ~LocalCluster() { Stop(); }

  // Ends all children in order: they drain.
  void Stop();
  // What the children wrote last, for the message of a failed job.
  std::string LogTails() const;

  static constexpr int kMaxRestarts = 4;

 private:
  struct Server {
    std::string name;
    std::string binary;
    std::vector<std::string> arguments;
    ChildProcess process;
    int restarts = 0;
  };
  explicit LocalCluster(WorkFolder work) : work_(std::move(work)) {}
  absl::Status Launch(std::string name, std::string binary, std::vector<std::string> arguments);

  // Before servers_: they must end before their folder goes.
  WorkFolder work_;
  std::string address_;
  std::vector<Server> servers_;
};

// One gradq-inference on loopback without a coordinator, or just the address of a running one.
class InferenceConnection {
 public:
  // `server` empty: a child is started. DEADLINE_EXCEEDED when nothing answers.
  static absl::StatusOr<InferenceConnection> Open(const std::string& server, int threads,
                                                  const std::string& device);
  const std::string& address() const { return address_; }

 private:
  std::string address_;
  std::unique_ptr<WorkFolder> work_;
  std::unique_ptr<ChildProcess> process_;
};

}  // namespace gradq
