#include "tests/integration/quantize_run.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/time/clock.h"
#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

namespace fs = std::filesystem;

// Arguments of a process, empty when it is gone.
std::vector<std::string> CommandLine(int pid) {
  std::ifstream file(StrCat("/proc/", pid, "/cmdline"));
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

// Parent pid from /proc/PID/stat; the name in parentheses may hold spaces.
int ParentOf(int pid) {
  std::ifstream file(StrCat("/proc/", pid, "/stat"));
  std::stringstream text;
  text << file.rdbuf();
  const std::string stat = text.str();
  const size_t end = stat.rfind(')');
  if (end == std::string::npos) return 0;
  char state;
  int parent = 0;
  std::stringstream(stat.substr(end + 1)) >> state >> parent;
  return state == 'Z' ? 0 : parent;
}

}  // namespace

QuantizeRun QuantizeRun::Start(const std::string& folder,
                               const std::vector<std::string>& arguments) {
  GRADQ_CHECK(MakeFolders(folder + "/work").ok());
  std::vector<std::string> all = {"quantize", "--output", folder + "/out", "--work-dir",
                                  folder + "/work"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  absl::StatusOr<ChildProcess> process =
      ChildProcess::Start(GRADQ_BIN "/gradq", all, folder + "/log");
  GRADQ_CHECK(process.ok());
  return QuantizeRun(folder, *std::move(process));
}

int QuantizeRun::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (process_.Running()) {
    if (absl::Now() > deadline) {
      process_.Stop(absl::Seconds(1));
      return -1;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  const std::string end = process_.HowItEnded();
  const int number = std::atoi(end.substr(end.rfind(' ') + 1).c_str());
  return end.starts_with("signal") ? 128 + number : number;
}

std::vector<v1::Task> QuantizeRun::Tasks() {
  if (!client_.has_value()) {
    for (const auto& entry : fs::directory_iterator(folder_ + "/work")) {
      const absl::StatusOr<std::string> port =
          ReadFile(entry.path().string() + "/coordinator.port");
      if (!port.ok()) continue;
      absl::StatusOr<JobClient> client =
          JobClient::Connect(port->substr(0, port->find('\n')), false, absl::Seconds(5));
      if (client.ok()) client_ = *std::move(client);
    }
  }
  if (!client_.has_value()) return {};
  absl::StatusOr<v1::ListJobsResponse> jobs = client_->List({});
  if (!jobs.ok() || jobs->jobs().empty()) return {};
  absl::StatusOr<std::vector<v1::Task>> tasks = client_->Tasks(jobs->jobs(0).name());
  return tasks.ok() ? *std::move(tasks) : std::vector<v1::Task>{};
}

std::vector<int> QuantizeRun::ServerPids() const {
  std::vector<int> pids;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const int pid = std::atoi(entry.path().filename().c_str());
    if (pid > 0 && ParentOf(pid) == process_.pid()) pids.push_back(pid);
  }
  return pids;
}

int QuantizeRun::PidOf(const std::string& server) const {
  for (const int pid : ServerPids()) {
    const std::vector<std::string> arguments = CommandLine(pid);
    if (arguments.empty()) continue;
    if (server == "coordinator" && arguments[0].ends_with("gradq-coordinator")) return pid;
    for (size_t i = 0; i + 1 < arguments.size(); ++i) {
      if (arguments[i] == "--name" && arguments[i + 1] == server) return pid;
    }
  }
  return 0;
}

std::string QuantizeRun::Log() const { return ReadFile(folder_ + "/log").value_or(""); }

GradqResult RunGradq(const std::vector<std::string>& arguments) {
  const char* folder = std::getenv("TMPDIR");
  const std::string log =
      StrCat(folder != nullptr ? folder : "/tmp", "/gradq-command-log-", getpid());
  fs::remove(log);
  absl::StatusOr<ChildProcess> process = ChildProcess::Start(GRADQ_BIN "/gradq", arguments, log);
  GRADQ_CHECK(process.ok());
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  while (process->Running() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
  if (process->Running()) return {-1, "still running after five minutes"};
  const std::string end = process->HowItEnded();
  const int number = std::atoi(end.substr(end.rfind(' ') + 1).c_str());
  GradqResult result{end.starts_with("exit code ") ? number : -1, ReadFile(log).value_or("")};
  fs::remove(log);
  return result;
}

std::string ArtifactListing(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<ReadableFolder>> opened = OpenLocalFolder(folder);
  if (!opened.ok()) return StrCat("no artifact: ", std::string(opened.status().message()));
  std::string listing;
  const auto entries = (*opened)->List();
  GRADQ_CHECK(entries.ok());
  for (const FolderEntry& entry : *entries) {
    if (entry.name == "report.json") continue;
    listing += StrCat(entry.name, " ",
                      Sha256Hex((*opened)->ReadAll(entry.name, int64_t{1} << 32).value()), "\n");
  }
  return listing;
}

}  // namespace gradq
