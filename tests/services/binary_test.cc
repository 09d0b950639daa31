// The coordinator's binary as an operator meets it: flags, example configuration, ports, signals,
// two of them on one folder.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "services/rpc/channel.h"
#include "services/rpc/port_file.h"
#include "services/rpc/server.h"
#include "tests/base/temporary_folder.h"

extern char** environ;

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Binary(const std::string& name) { return std::string(GRADQ_BIN) + "/" + name; }

// A child process whose output goes to a file; killed when it goes out of scope.
class Process {
 public:
  Process(std::vector<std::string> arguments, const std::string& log) : log_(log) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &files, nullptr, argv.data(), environ), 0) << argv[0];
    posix_spawn_file_actions_destroy(&files);
  }
  ~Process() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  void Signal(int signal) const { kill(pid_, signal); }
  // The exit code, -signal, or 1000 when it still runs after 30 s.
  int Wait() {
    int status = 0;
    for (int i = 0; i < 3000; ++i) {
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
    return 1000;
  }
  std::string Output() const { return *ReadFile(log_); }

 private:
  std::string log_;
  pid_t pid_ = -1;
};

class CoordinatorBinary : public ::testing::Test {
 protected:
  Process Start(std::vector<std::string> more, const std::string& log = "log") {
    more.insert(more.begin(), {Binary("gradq-coordinator")});
    return Process(more, folder_ / log);
  }
  absl::StatusOr<std::string> Address(const std::string& port_file = "port") {
    return WaitForPortFile(folder_ / port_file, absl::Seconds(20), [] { return false; });
  }
  absl::Status Reachable(const std::string& address, absl::Duration timeout) {
    return WaitConnected(**Dial(address, {}), address, timeout);
  }
  TemporaryFolder folder_;
};

TEST_F(CoordinatorBinary, WrongUseIsCodeTwo) {
  EXPECT_EQ(Start({}).Wait(), 2);
  EXPECT_EQ(Start({"--data-dir", folder_ / "d", "--unknown"}).Wait(), 2);
  EXPECT_EQ(Start({"--data-dir", folder_ / "d", "--lease-ttl", "1s"}).Wait(), 2)
      << "heartbeat is longer";
  Process help = Start({"--help"});
  EXPECT_EQ(help.Wait(), 0);
  EXPECT_THAT(help.Output(), AllOf(HasSubstr("--data-dir"), HasSubstr("Example:")));
}

TEST_F(CoordinatorBinary, ServesUntilSigterm) {
  Process process = Start({"--data-dir", folder_ / "data", "--port-file", folder_ / "port",
                           "--lease-ttl", "600ms", "--heartbeat", "200ms"});
  const auto address = Address();
  ASSERT_TRUE(address.ok()) << address.status() << process.Output();
  EXPECT_TRUE(Reachable(*address, absl::Seconds(10)).ok());

  Process same_folder = Start({"--data-dir", folder_ / "data"}, "second");
  EXPECT_EQ(same_folder.Wait(), 1);
  EXPECT_THAT(same_folder.Output(),
              AllOf(HasSubstr("in use by another coordinator"), HasSubstr(folder_ / "data")));
  Process same_port = Start({"--data-dir", folder_ / "other", "--listen", *address}, "third");
  EXPECT_EQ(same_port.Wait(), 1);
  EXPECT_THAT(same_port.Output(), AllOf(HasSubstr("port is taken"), HasSubstr(*address)));

  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0) << process.Output();
}

TEST_F(CoordinatorBinary, AFolderLeftBySigkillIsTakenUp) {
  Process first = Start({"--data-dir", folder_ / "data", "--port-file", folder_ / "port"});
  ASSERT_TRUE(Address().ok());
  first.Signal(SIGKILL);
  EXPECT_EQ(first.Wait(), -SIGKILL);
  Process second =
      Start({"--data-dir", folder_ / "data", "--port-file", folder_ / "port2"}, "second");
  EXPECT_TRUE(Address("port2").ok()) << second.Output();
}

TEST_F(CoordinatorBinary, PlaintextStaysOnLoopback) {
  Process process = Start({"--data-dir", folder_ / "data", "--listen", "0.0.0.0:0"});
  EXPECT_EQ(process.Wait(), 1);
  EXPECT_THAT(process.Output(), HasSubstr("--insecure"));
}

TEST_F(CoordinatorBinary, MissingRootsAreNamed) {
  Process process = Start({"--data-dir", folder_ / "data", "--model-root", folder_ / "absent"});
  EXPECT_EQ(process.Wait(), 1);
  EXPECT_THAT(process.Output(), AllOf(HasSubstr("--model-root"), HasSubstr(folder_ / "absent")));
}

TEST_F(CoordinatorBinary, EndsWithItsParent) {
  const std::string command = Binary("gradq-coordinator") + " --exit-with-parent --data-dir " +
                              (folder_ / "data") + " --port-file " + (folder_ / "port") + " & wait";
  Process shell({"/bin/sh", "-c", command}, folder_ / "log");
  const auto address = Address();
  ASSERT_TRUE(address.ok()) << address.status();
  ASSERT_TRUE(Reachable(*address, absl::Seconds(10)).ok());
  shell.Signal(SIGKILL);
  EXPECT_EQ(shell.Wait(), -SIGKILL);
  ListenOptions listen;
  listen.address = *address;
  absl::Status free = absl::UnknownError("not tried");
  for (int i = 0; i < 500 && !free.ok(); ++i) {
    absl::SleepFor(absl::Milliseconds(20));
    free = RpcServer::Start(listen, {}).status();
  }
  EXPECT_TRUE(free.ok()) << free;
}

class ExampleConfiguration : public ::testing::TestWithParam<std::vector<std::string>> {};

TEST_P(ExampleConfiguration, IsAcceptedByItsBinary) {
  const TemporaryFolder folder;
  const std::string config = std::string(GRADQ_FIXTURES) + "/../../deploy/config/" + GetParam()[1];
  Process good({Binary(GetParam()[0]), "--config", config, "--check-config"}, folder / "log");
  EXPECT_EQ(good.Wait(), 0) << good.Output();
  const std::string broken = folder / "broken.yaml";
  ASSERT_TRUE(WriteFileAtomically(broken, *ReadFile(config) + "\nno-such-flag: 1\n").ok());
  Process bad({Binary(GetParam()[0]), "--config", broken, "--check-config"}, folder / "log");
  EXPECT_EQ(bad.Wait(), 2);
  EXPECT_THAT(bad.Output(), HasSubstr("no-such-flag"));
}

INSTANTIATE_TEST_SUITE_P(
    Deploy, ExampleConfiguration,
    ::testing::Values(std::vector<std::string>{"gradq-coordinator", "coordinator.yaml"},
                      std::vector<std::string>{"gradq-worker", "worker.yaml"},
                      std::vector<std::string>{"gradq-inference", "inference.yaml"}),
    [](const auto& info) {
      const std::string& file = info.param[1];
      return file.substr(0, file.find('.'));
    });

}  // namespace
}  // namespace gradq
