// The artifact's bytes do not depend on workers, stages, threads or killed processes: the promise
// users get from design "Numbers do not depend on the schedule", checked on the real binaries.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "tests/integration/quantize_run.h"

namespace gradq {
namespace {

constexpr absl::Duration kLimit = absl::Minutes(3);

std::string Fixture(const std::string& file) {
  return StrCat(GRADQ_FIXTURES, "/docs-llama-6m", file);
}

std::vector<std::string> JobArguments(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {
      "--model",     Fixture(""), "--calibration", Fixture("/calibration.txt"),
      "--sequences", "16",        "--length",      "256",
      "--bits",      "3",         "--iterations",  "2",
      "--cycles",    "2",         "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

class ArtifactIdentity : public testing::Test {
 protected:
  static std::string Folder(const std::string& name) {
    return StrCat(testing::TempDir(), "/gradq-identity-", name);
  }

  // Runs a job to its end and gives the listing of its artifact.
  static std::string Run(const std::string& name, const std::vector<std::string>& more) {
    const std::string folder = Folder(name);
    RemoveRecursively(folder).IgnoreError();
    QuantizeRun run = QuantizeRun::Start(folder, JobArguments(more));
    EXPECT_EQ(run.Wait(kLimit), 0) << run.Log();
    return ArtifactListing(run.output());
  }

  // One worker, one stage, one thread: what everything else must equal.
  static const std::string& Reference() {
    static const std::string* listing =
        new std::string(Run("reference", {"--workers", "1", "--stages", "1", "--threads", "1"}));
    return *listing;
  }
};

TEST_F(ArtifactIdentity, ReferenceIsComplete) {
  EXPECT_THAT(Reference(), testing::HasSubstr("gradq.json "));
  EXPECT_THAT(Reference(), testing::HasSubstr(".safetensors "));
}

TEST_F(ArtifactIdentity, AnyWorkers) {
  EXPECT_EQ(Run("workers2", {"--workers", "2"}), Reference());
  EXPECT_EQ(Run("workers3", {"--workers", "3"}), Reference());
}

TEST_F(ArtifactIdentity, AnyStages) {
  EXPECT_EQ(Run("stages2", {"--workers", "1", "--stages", "2"}), Reference());
  EXPECT_EQ(Run("stages3", {"--workers", "2", "--stages", "3"}), Reference());
}

TEST_F(ArtifactIdentity, AnyThreads) {
  EXPECT_EQ(Run("threads2", {"--workers", "1", "--threads", "2"}), Reference());
}

// The command starts its coordinator again on the same data; workers find it and go on.
TEST_F(ArtifactIdentity, CoordinatorKilled) {
  const std::string folder = Folder("coordinator");
  RemoveRecursively(folder).IgnoreError();
  QuantizeRun run = QuantizeRun::Start(folder, JobArguments({"--workers", "2"}));
  bool killed = false;
  while (run.Running() && !killed) {
    for (const v1::Task& task : run.Tasks()) {
      // By its state alone: counts of chunks arrive with heartbeats, and a fast job has none.
      const bool backward = task.name().find("/tasks/backward") != std::string::npos;
      if (killed || !backward || task.state() != v1::Task::RUNNING) continue;
      // Never pid 0: that would be this test's own process group.
      const int pid = run.PidOf("coordinator");
      killed = pid > 0 && kill(pid, SIGKILL) == 0;
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  EXPECT_TRUE(killed);
  EXPECT_EQ(run.Wait(kLimit), 0) << run.Log();
  EXPECT_EQ(ArtifactListing(run.output()), Reference());
}

struct Kill {
  std::string phase;  // first word of the task's name
  int workers;
};

class ArtifactAfterKill : public ArtifactIdentity, public testing::WithParamInterface<Kill> {};

// Kills the worker that runs a task of the phase, sees that the task's attempt was lost, and
// compares the result.
TEST_P(ArtifactAfterKill, SameBytes) {
  const auto& [phase, workers] = GetParam();
  const std::string folder = Folder(StrCat("kill-", phase, "-", workers));
  RemoveRecursively(folder).IgnoreError();
  QuantizeRun run =
      QuantizeRun::Start(folder, JobArguments({"--workers", StrCat(workers), "--stages", "2"}));

  std::string victim_task;
  bool attempt_lost = false;
  const absl::Time deadline = absl::Now() + kLimit;
  while (run.Running() && absl::Now() < deadline) {
    for (const v1::Task& task : run.Tasks()) {
      const bool of_phase = task.name().find(StrCat("/tasks/", phase)) != std::string::npos;
      if (victim_task.empty() && of_phase && task.state() == v1::Task::RUNNING) {
        const int pid = run.PidOf(task.worker().substr(task.worker().rfind('/') + 1));
        if (pid == 0) continue;
        ASSERT_EQ(kill(pid, SIGKILL), 0);
        victim_task = task.name();
        break;
      }
      if (task.name() == victim_task && task.lost_workers() > 0) attempt_lost = true;
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  EXPECT_FALSE(victim_task.empty()) << "no task of the phase was seen running: " << phase;
  EXPECT_TRUE(attempt_lost) << victim_task;
  EXPECT_EQ(run.Wait(kLimit), 0) << run.Log();
  EXPECT_EQ(ArtifactListing(run.output()), Reference());
}

INSTANTIATE_TEST_SUITE_P(Phases, ArtifactAfterKill,
                         testing::Values(Kill{"forward", 1}, Kill{"backward", 1}, Kill{"solve", 1},
                                         Kill{"forward", 2}, Kill{"backward", 2}, Kill{"solve", 2}),
                         [](const auto& info) {
                           return StrCat(info.param.phase, "_", info.param.workers);
                         });

}  // namespace
}  // namespace gradq
