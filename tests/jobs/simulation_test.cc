// Every fault at every call, and seeded mixtures of faults: the job ends as it must, nothing is
// published twice, nothing waits for ever. A failing case prints its coordinates (fault and call,
// or seed), its tasks and its events; run it alone with them.

#include "tests/jobs/simulation.h"

#include <cstdlib>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

// Of the stored history: shards and the artifact are published once, and each task's attempts are
// numbered upwards.
void CheckHistory(const Simulation& simulation) {
  std::map<std::string, int> successes;
  int64_t last_seq = 0;
  int published = 0;
  for (const v1::Event& event : simulation.events()) {
    ASSERT_GT(event.seq(), last_seq);
    last_seq = event.seq();
    if (event.type() == "job.published") ++published;
    if (event.type() == "task.succeeded") ++successes[event.subject()];
  }
  EXPECT_LE(published, 1);
  for (const v1::Task& task : simulation.tasks()) {
    if (!task.spec().has_solve_linear()) continue;
    EXPECT_EQ(successes[task.name()], task.state() == v1::Task::SUCCEEDED ? 1 : 0) << task.name();
  }
}

void ExpectSucceeded(const Simulation& simulation) {
  const v1::Job job = simulation.job();
  EXPECT_EQ(job.state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(job.artifact_digest(), "digest");
  EXPECT_EQ(job.progress().tasks_done(), job.progress().tasks_total());
  EXPECT_EQ(job.progress().linears_done(), job.progress().linears_total());
  EXPECT_EQ(job.progress().chunks_done(), job.progress().chunks_total());
  for (const v1::Task& task : simulation.tasks()) {
    EXPECT_EQ(task.state(), v1::Task::SUCCEEDED) << task.name();
  }
}

struct Shape {
  int workers;
  int stages;
};

class EveryCall : public testing::TestWithParam<Shape> {
 protected:
  // Runs the fault at each call that changes something in a run without faults, and at every
  // seventh of those that don't (polls and heartbeats without news).
  void ForEachCall(const SimulationOptions& options, FaultKind kind,
                   const std::function<void(const Simulation&)>& check) {
    Simulation calm(options, {});
    ASSERT_TRUE(calm.Run()) << calm.Describe();
    ExpectSucceeded(calm);
    std::set<int> all(calm.effective_calls().begin(), calm.effective_calls().end());
    for (int call = 0; call < calm.calls(); call += 7) all.insert(call);
    std::vector<int> calls(all.begin(), all.end());
    // Where there are too many for a unit test: some, other ones for each case.
    const bool every = most_calls_ == 0 || std::getenv("GRADQ_SIMULATION_EVERY_CALL") != nullptr;
    const size_t stride = every ? 1 : calls.size() / most_calls_ + 1;
    for (size_t i = every ? 0 : ++cases_ % stride; i < calls.size(); i += stride) {
      const int call = calls[i];
      SCOPED_TRACE(StrCat("fault ", static_cast<int>(kind), " at call ", call));
      Simulation simulation(options, {kind, call});
      const bool ended = simulation.Run();
      CheckHistory(simulation);
      if (ended) check(simulation);
      if (simulation.job().state() == v1::Job::SUCCEEDED) {
        EXPECT_EQ(simulation.artifact(), calm.artifact());
      }
      ASSERT_TRUE(ended && !HasFailure()) << simulation.Describe();
    }
  }
  // 0: all.
  size_t most_calls_ = 0;
  size_t cases_ = 0;

  SimulationOptions Options() const {
    SimulationOptions options;
    options.workers = GetParam().workers;
    options.stages = GetParam().stages;
    return options;
  }
};

// Somebody must be left.
class EveryCallWithAnotherWorker : public EveryCall {};
// One diagonal of the shapes is enough for them.
class EveryCallOfVariants : public EveryCall {};

TEST_P(EveryCall, DeathBeforeTheCall) {
  ForEachCall(Options(), FaultKind::kDeathBefore, ExpectSucceeded);
}
TEST_P(EveryCall, DeathAfterTheCall) {
  ForEachCall(Options(), FaultKind::kDeathAfter, ExpectSucceeded);
}
TEST_P(EveryCallWithAnotherWorker, DeathForGood) {
  ForEachCall(Options(), FaultKind::kDeathForGood, ExpectSucceeded);
}
TEST_P(EveryCall, StallThenLateMessages) {
  ForEachCall(Options(), FaultKind::kStall, ExpectSucceeded);
}
TEST_P(EveryCall, RepeatedCall) { ForEachCall(Options(), FaultKind::kRepeat, ExpectSucceeded); }
TEST_P(EveryCall, RestartOfTheCoordinator) {
  ForEachCall(Options(), FaultKind::kRestart, ExpectSucceeded);
}
TEST_P(EveryCall, Cancel) {
  ForEachCall(Options(), FaultKind::kCancel, [](const Simulation& simulation) {
    const v1::Job job = simulation.job();
    if (job.artifact_path().empty()) {
      EXPECT_EQ(job.state(), v1::Job::CANCELLED);
    } else {
      EXPECT_EQ(job.state(), v1::Job::SUCCEEDED);
    }
    for (const v1::Task& task : simulation.tasks()) {
      EXPECT_TRUE(task.state() == v1::Task::SUCCEEDED || task.state() == v1::Task::CANCELLED)
          << task.name();
    }
  });
}

// The other kinds of graphs and workers, under the faults that take most away.
TEST_P(EveryCallOfVariants, UnderDeathsStallsAndRestarts) {
  SimulationOptions plain = Options();
  plain.objective = "plain";
  SimulationOptions rtn = Options();
  rtn.method = "rtn";
  SimulationOptions small = Options();
  small.small_memory = true;
  SimulationOptions validated = Options();
  validated.evaluation = true;
  validated.inference_workers = 1;
  for (const SimulationOptions& options : {plain, rtn, small, validated}) {
    for (const FaultKind fault : {FaultKind::kDeathAfter, FaultKind::kStall, FaultKind::kRestart}) {
      SCOPED_TRACE(StrCat(options.method, " ", options.objective, " ", options.evaluation));
      ForEachCall(options, fault, ExpectSucceeded);
    }
  }
}

// Jobs of several rounds: statistics wait for a later round, passes for shards and decisions.
SimulationOptions Requant(SimulationOptions options) {
  options.method = "squeezellm";
  options.outliers = "pqi";
  options.outlier_options = {{"nodes", "2"}};
  return options;
}
SimulationOptions Coupled(SimulationOptions options) {
  options.objective = "coupled";
  options.method_options = {{"holdout", "2"}};
  return options;
}
SimulationOptions Mixed(SimulationOptions options) {
  options.average_bits = 4.5;
  return options;
}
SimulationOptions WideScope(SimulationOptions options) {
  options.method = "rtn";
  options.outliers = "gwq";
  options.outlier_options = {{"scope", "model"}};
  return options;
}

// (GRADQ_SIMULATION_EVERY_CALL=1 tries every call of them: a minute.)
TEST_P(EveryCallOfVariants, RoundsUnderDeathsStallsAndRestarts) {
  most_calls_ = 8;
  for (auto* kind : {Requant, Coupled, Mixed, WideScope}) {
    for (const bool small_memory : {false, true}) {
      SimulationOptions options = kind(Options());
      options.small_memory = small_memory;
      for (const FaultKind fault :
           {FaultKind::kDeathAfter, FaultKind::kStall, FaultKind::kRestart}) {
        SCOPED_TRACE(StrCat(options.objective, " ", options.outliers, " ", small_memory));
        ForEachCall(options, fault, ExpectSucceeded);
      }
    }
  }
}

std::string ShapeName(const testing::TestParamInfo<Shape>& info) {
  return StrCat(info.param.workers, "Workers", info.param.stages, "Stages");
}

INSTANTIATE_TEST_SUITE_P(Shapes, EveryCall,
                         testing::Values(Shape{1, 1}, Shape{1, 2}, Shape{1, 3}, Shape{2, 1},
                                         Shape{2, 2}, Shape{2, 3}, Shape{3, 1}, Shape{3, 2},
                                         Shape{3, 3}),
                         ShapeName);
INSTANTIATE_TEST_SUITE_P(Shapes, EveryCallWithAnotherWorker,
                         testing::Values(Shape{2, 1}, Shape{2, 2}, Shape{2, 3}, Shape{3, 1},
                                         Shape{3, 2}, Shape{3, 3}),
                         ShapeName);
INSTANTIATE_TEST_SUITE_P(Shapes, EveryCallOfVariants,
                         testing::Values(Shape{1, 3}, Shape{2, 2}, Shape{3, 1}), ShapeName);

}  // namespace
}  // namespace gradq
