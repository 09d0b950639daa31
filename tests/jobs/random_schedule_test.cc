// Seeded mixtures of lost, late and repeated calls, deaths, stalls and restarts. The failing seed
// is in the test's message; GRADQ_SIMULATION_SEEDS=N runs more of them, GRADQ_SIMULATION_SEED=K
// only that one.

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"
#include "tests/jobs/simulation.h"

namespace gradq {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

SimulationOptions OptionsOf(uint64_t seed) {
  std::mt19937_64 random(seed * 7919 + 1);
  SimulationOptions options;
  options.seed = seed;
  options.workers = 1 + static_cast<int>(random() % 3);
  options.stages = 1 + static_cast<int>(random() % 3);
  if (random() % 4 == 0) options.objective = "plain";
  switch (random() % 8) {  // jobs of several rounds
    case 0:
      options.method = "squeezellm";
      options.objective = "guided";
      options.outliers = "pqi";
      options.outlier_options = {{"nodes", "2"}, {"steps", "1"}};
      break;
    case 1:
      options.objective = "coupled";
      options.method_options = {{"holdout", "2"}};
      break;
    case 2:
      options.average_bits = 4.5;
      break;
    default:
      break;
  }
  options.evaluation = random() % 3 == 0;
  options.inference_workers = options.evaluation ? static_cast<int>(random() % 2) : 0;
  options.small_memory = random() % 2 == 0;
  options.lose = static_cast<double>(random() % 3) * 0.05;
  options.repeat = static_cast<double>(random() % 3) * 0.1;
  options.deaths = static_cast<int>(random() % 3);  // fewer than the three that fail a task
  options.stalls = static_cast<int>(random() % 3);
  options.restarts = static_cast<int>(random() % 3);
  options.name_lost_inputs = random() % 2 == 0;
  return options;
}

void RunSeed(uint64_t seed) {
  SCOPED_TRACE(StrCat("GRADQ_SIMULATION_SEED=", seed));
  const SimulationOptions options = OptionsOf(seed);
  Simulation simulation(options, {});
  ASSERT_TRUE(simulation.Run()) << simulation.Describe();
  const v1::Job job = simulation.job();
  // A stall is a lost worker as well: deaths and stalls together may be three under one task.
  if (job.state() == v1::Job::FAILED) {
    EXPECT_GE(options.deaths + options.stalls, 3) << simulation.Describe();
    EXPECT_THAT(job.message(), testing::HasSubstr("lost 3 workers"));
    return;
  }
  ASSERT_EQ(job.state(), v1::Job::SUCCEEDED) << simulation.Describe();
  int published = 0;
  for (const v1::Event& event : simulation.events()) {
    published += event.type() == "job.published" ? 1 : 0;
  }
  EXPECT_EQ(published, 1) << simulation.Describe();
}

TEST(RandomSchedule, EndsAndPublishesOnce) {
  if (std::getenv("GRADQ_SIMULATION_SEED") != nullptr) {
    return RunSeed(FromEnvironment("GRADQ_SIMULATION_SEED", 0));
  }
  const uint64_t seeds = FromEnvironment("GRADQ_SIMULATION_SEEDS", 1000);
  for (uint64_t seed = 0; seed < seeds && !HasFailure(); ++seed) RunSeed(seed);
}

}  // namespace
}  // namespace gradq
