// Jobs of several rounds on the real binaries: the same bytes for any workers and after a killed
// one in a later round, and ReQuant's integral against the loss difference it stands for.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "tests/integration/quantize_run.h"

namespace gradq {
namespace {

constexpr absl::Duration kLimit = absl::Minutes(3);

using Arguments = std::vector<std::string>;

const Arguments kRequant = {"--method", "squeezellm", "--outliers", "pqi", "--bits", "3"};
const Arguments kCoupled = {"--objective", "coupled", "--bits", "2", "--cycles", "2"};

std::string Folder(const std::string& name) {
  return StrCat(testing::TempDir(), "/gradq-requant-", name);
}

QuantizeRun Start(const std::string& name, const Arguments& recipe, const Arguments& more) {
  const std::string model = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  Arguments arguments = {"--model",     model, "--calibration", model + "/calibration.txt",
                         "--sequences", "32",  "--length",      "256",
                         "--json"};
  arguments.insert(arguments.end(), recipe.begin(), recipe.end());
  arguments.insert(arguments.end(), more.begin(), more.end());
  RemoveRecursively(Folder(name)).IgnoreError();
  return QuantizeRun::Start(Folder(name), arguments);
}

// Runs a job to its end and gives the listing of its artifact.
std::string Listing(const std::string& name, const Arguments& recipe, const Arguments& more) {
  QuantizeRun run = Start(name, recipe, more);
  EXPECT_EQ(run.Wait(kLimit), 0) << run.Log();
  return ArtifactListing(run.output());
}

// One worker, one stage, one thread: what everything else must equal.
const Arguments kSmallest = {"--workers", "1", "--stages", "1", "--threads", "1"};

const std::string& Reference() {
  static const std::string* listing = new std::string(Listing("reference", kRequant, kSmallest));
  return *listing;
}

TEST(RequantIdentity, AnyWorkers) {
  EXPECT_THAT(Reference(), testing::HasSubstr(".safetensors "));
  EXPECT_EQ(Listing("workers2", kRequant, {"--workers", "2"}), Reference());
  EXPECT_EQ(Listing("workers3", kRequant, {"--workers", "3"}), Reference());
}

struct Kill {
  std::string task;  // first part of its name
  int workers;
};

class RequantAfterKill : public testing::TestWithParam<Kill> {};

// Kills the worker that runs a task of a later round and sees that the attempt was lost.
TEST_P(RequantAfterKill, SameBytes) {
  const auto& [wanted, workers] = GetParam();
  QuantizeRun run = Start(StrCat("kill-", wanted, "-", workers), kRequant,
                          {"--workers", StrCat(workers), "--stages", "2"});
  std::string victim;
  bool lost = false;
  const absl::Time deadline = absl::Now() + kLimit;
  while (run.Running() && absl::Now() < deadline) {
    for (const v1::Task& task : run.Tasks()) {
      const bool of_phase = task.name().find(StrCat("/tasks/", wanted)) != std::string::npos;
      if (victim.empty() && of_phase && task.state() == v1::Task::RUNNING) {
        const int pid = run.PidOf(task.worker().substr(task.worker().rfind('/') + 1));
        if (pid == 0) continue;
        ASSERT_EQ(kill(pid, SIGKILL), 0);
        victim = task.name();
        break;
      }
      if (task.name() == victim && task.lost_workers() > 0) lost = true;
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  EXPECT_FALSE(victim.empty()) << "no such task was seen running: " << wanted;
  EXPECT_TRUE(lost) << victim;
  EXPECT_EQ(run.Wait(kLimit), 0) << run.Log();
  EXPECT_EQ(ArtifactListing(run.output()), Reference());
}

INSTANTIATE_TEST_SUITE_P(Rounds, RequantAfterKill,
                         testing::Values(Kill{"backward-1", 1}, Kill{"backward-1", 2},
                                         Kill{"forward-2", 2}, Kill{"backward-3", 2}),
                         [](const auto& info) {
                           std::string name = StrCat(info.param.task, "_", info.param.workers);
                           name[name.find('-')] = '_';
                           return name;
                         });

class RequantCheck : public testing::TestWithParam<int> {};

// Ways as long as those at 2 bits need a fourth node.
TEST_P(RequantCheck, IntegralIsTheMeasuredLossDifference) {
  const int bits = GetParam();
  QuantizeRun run = Start(StrCat("check-", bits), {"--method", "squeezellm", "--outliers", "pqi"},
                          {"--bits", StrCat(bits), "--nodes", bits == 2 ? "4" : "3"});
  ASSERT_EQ(run.Wait(kLimit), 0) << run.Log();
  const auto text = ReadFile(run.output() + "/report.json");
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json report = nlohmann::json::parse(*text);
  ASSERT_EQ(report.at("path_checks").size(), 3u) << report.dump();
  double before = 1e9;
  for (const nlohmann::json& check : report["path_checks"]) {
    const double integral = check.at("integral"), measured = check.at("measured");
    EXPECT_LT(std::fabs(integral - measured), 0.005 * measured) << check.dump();
    EXPECT_LT(measured, before) << "each round lowers the loss: " << check.dump();
    before = measured;
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, RequantCheck, testing::Values(2, 3, 4),
                         [](const auto& info) { return StrCat("bits", info.param); });

TEST(CoupledIdentity, AnyWorkers) {
  EXPECT_EQ(Listing("coupled2", kCoupled, {"--workers", "2"}),
            Listing("coupled1", kCoupled, kSmallest));
}

}  // namespace
}  // namespace gradq
