#pragma once

// The server processes that `gradq quantize`, `eval`, `compare` and `generate` start on loopback.
// Children run in a process group of their own (Ctrl-C reaches only the CLI, which then stops them
// in order), log to a file and die with the CLI (--exit-with-parent).

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradq {

class ChildProcess {
 public:
  // Starts `binary`: a path, or a name beside this executable. stdout and stderr are appended to
  // `log_path`. UNAVAILABLE naming the binary.
  static absl::StatusOr<ChildProcess> Start(const std::string& binary,
                                            std::vector<std::string> arguments,
                                            std::string log_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  // Kills and reaps a child that still runs.
  ~ChildProcess();

  // False once it has ended; reaps it.
  bool Running();
  // "exit code 1", "signal 9"; empty while it runs.
  std::string HowItEnded() const;
  void Signal(int signal) const;
  // SIGTERM, then after `grace` SIGKILL; returns when it is reaped.
  void Stop(absl::Duration grace);
  // The last lines of its log, for messages.
  std::string LogTail() const;
  int pid() const { return pid_; }

 private:
  ChildProcess(int pid, std::string log_path) : pid_(pid), log_path_(std::move(log_path)) {}
  int pid_ = -1;
  int wait_status_ = 0;
  bool ended_ = false;
  std::string log_path_;
};

// Waits until `port_file` holds HOST:PORT. UNAVAILABLE with the log's tail when the child ends
// first; DEADLINE_EXCEEDED after `timeout`.
absl::StatusOr<std::string> WaitForPortFile(ChildProcess& child, const std::string& port_file,
                                            absl::Duration timeout);

// A private folder that is removed with its content when this goes out of scope.
class WorkFolder {
 public:
  // Below `parent`, or the system's temporary folder when empty.
  static absl::StatusOr<WorkFolder> Create(const std::string& parent);
  WorkFolder(WorkFolder&& other) noexcept;
  WorkFolder& operator=(WorkFolder&&) = delete;
  ~WorkFolder();
  const std::string& path() const { return path_; }

 private:
  explicit WorkFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace gradq
