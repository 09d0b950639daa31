#include "services/cli/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

extern char** environ;

namespace gradq {
namespace {

absl::StatusOr<std::string> PathBesideThisExecutable(const std::string& binary) {
  if (binary.find('/') != std::string::npos) return binary;
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error)
    return absl::UnavailableError(StrCat("cannot find this executable: ", error.message()));
  const std::string path = (self.parent_path() / binary).string();
  if (access(path.c_str(), X_OK) != 0) return ErrnoToStatus(errno, "cannot execute", path);
  return path;
}

}  // namespace

absl::StatusOr<ChildProcess> ChildProcess::Start(const std::string& binary,
                                                 std::vector<std::string> arguments,
                                                 std::string log_path) {
  GRADQ_ASSIGN_OR_RETURN(const std::string path, PathBesideThisExecutable(binary));
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, log_path.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t empty;
  sigemptyset(&empty);
  posix_spawnattr_setsigmask(&attributes, &empty);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);

  pid_t pid = -1;
  const int error = posix_spawn(&pid, path.c_str(), &files, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0)
    return absl::UnavailableError(StrCat("cannot start ", path, ": ", strerror(error)));
  return ChildProcess(pid, std::move(log_path));
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      wait_status_(other.wait_status_),
      ended_(other.ended_),
      log_path_(std::move(other.log_path_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    Stop(absl::ZeroDuration());
    pid_ = std::exchange(other.pid_, -1);
    wait_status_ = other.wait_status_;
    ended_ = other.ended_;
    log_path_ = std::move(other.log_path_);
  }
  return *this;
}

ChildProcess::~ChildProcess() { Stop(absl::ZeroDuration()); }

bool ChildProcess::Running() {
  if (pid_ < 0 || ended_) return false;
  if (waitpid(pid_, &wait_status_, WNOHANG) == pid_) ended_ = true;
  return !ended_;
}

std::string ChildProcess::HowItEnded() const {
  if (!ended_) return "";
  if (WIFSIGNALED(wait_status_)) return StrCat("signal ", WTERMSIG(wait_status_));
  return StrCat("exit code ", WEXITSTATUS(wait_status_));
}

void ChildProcess::Signal(int signal) const {
  if (pid_ > 0 && !ended_) kill(pid_, signal);
}

void ChildProcess::Stop(absl::Duration grace) {
  if (!Running()) return;
  if (grace > absl::ZeroDuration()) {
    Signal(SIGTERM);
    const absl::Time deadline = absl::Now() + grace;
    while (Running() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
  }
  if (!Running()) return;
  Signal(SIGKILL);
  while (waitpid(pid_, &wait_status_, 0) < 0 && errno == EINTR) {
  }
  ended_ = true;
}

std::string ChildProcess::LogTail() const {
  constexpr size_t kTail = 2000;
  absl::StatusOr<std::string> log = ReadFile(log_path_);
  if (!log.ok() || log->empty()) return "";
  if (log->size() <= kTail) return *log;
  const size_t line = log->find('\n', log->size() - kTail);
  return line == std::string::npos ? log->substr(log->size() - kTail) : log->substr(line + 1);
}

absl::StatusOr<std::string> WaitForPortFile(ChildProcess& child, const std::string& port_file,
                                            absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (absl::Now() < deadline) {
    // The file is renamed into place, so what can be read is whole.
    if (absl::StatusOr<std::string> content = ReadFile(port_file); content.ok()) {
      while (!content->empty() && content->back() == '\n') content->pop_back();
      return *content;
    }
    if (!child.Running()) {
      return absl::UnavailableError(StrCat("a server process ended before it was ready: ",
                                           child.HowItEnded(), "\n", child.LogTail()));
    }
    absl::SleepFor(absl::Milliseconds(3));
  }
  return absl::DeadlineExceededError(
      StrCat("a server process was not ready in time: ", child.LogTail()));
}

absl::StatusOr<WorkFolder> WorkFolder::Create(const std::string& parent) {
  std::error_code error;
  std::string base = parent.empty() ? std::filesystem::temp_directory_path(error).string() : parent;
  if (error) return ErrnoToStatus(error.value(), "no temporary folder", base);
  std::string name = base + "/gradq-XXXXXX";
  if (mkdtemp(name.data()) == nullptr)
    return ErrnoToStatus(errno, "cannot create a work folder below", base);
  return WorkFolder(std::move(name));
}

WorkFolder::WorkFolder(WorkFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}

WorkFolder::~WorkFolder() {
  if (!path_.empty()) RemoveRecursively(path_).IgnoreError();
}

}  // namespace gradq
