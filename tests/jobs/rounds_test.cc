// Jobs of several rounds, call by call: what waits for what, what leases carry, what is decided and
// reported. Under faults: simulation_test.

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"
#include "tests/jobs/core_harness.h"

namespace gradq {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

NewJob Requant() {
  NewJob job = TinyJob(1);
  v1::Recipe& recipe = *job.spec.mutable_recipe();
  recipe.set_method("squeezellm");
  recipe.set_outliers("pqi");
  (*recipe.mutable_outlier_options())["nodes"] = "2";
  (*recipe.mutable_outlier_options())["steps"] = "1";
  ResolveRecipe(&job.spec);
  return job;
}

NewJob Coupled() {
  NewJob job = TinyJob(1);
  job.spec.mutable_recipe()->set_objective("coupled");
  (*job.spec.mutable_recipe()->mutable_options())["holdout"] = "2";
  ResolveRecipe(&job.spec);
  return job;
}

std::string Part(const v1::Lease& lease) {
  return lease.task().substr(lease.task().rfind('/') + 1);
}

// Works off everything, with a look at each lease.
template <typename Look>
void WorkOff(CoreHarness* core, const std::string& session, const Look& look) {
  while (const auto lease = core->Lease(session)) {
    look(*lease);
    ASSERT_TRUE(core->Finish(session, *lease).ok()) << lease->task();
  }
}

TEST(Rounds, RequantRunsItsRoundsInOrder) {
  CoreHarness core;
  core.Create(Requant());
  const std::string worker = core.Register("w");
  const std::vector<std::string> names = core.WorkOff(worker);
  // One stage: one backward and seven scores or solves per round.
  ASSERT_THAT(names, SizeIs(8 + 15 + 15));
  EXPECT_EQ(names[0], "backward-0-0");
  EXPECT_THAT(names[1], StartsWith("solve-0-0-"));
  EXPECT_EQ(names[8], "backward-1-0");
  EXPECT_THAT(names[9], StartsWith("score-1-0-"));
  EXPECT_THAT(names[16], StartsWith("solve-1-0-"));
  EXPECT_EQ(names[23], "backward-2-0");
  EXPECT_THAT(names[24], StartsWith("score-2-0-"));
  EXPECT_THAT(names[31], StartsWith("solve-2-0-"));
  EXPECT_EQ(core.Job().state(), v1::Job::ASSEMBLING);
  EXPECT_EQ(core.Task("decide-1").state(), v1::Task::SUCCEEDED);
  EXPECT_EQ(core.Task("decide-2").state(), v1::Task::SUCCEEDED);
  const auto shards = core.core->Shards("jobs/1");
  ASSERT_THAT(*shards, SizeIs(7));
  EXPECT_EQ((*shards)[0].sha256(), core.Task("solve-2-0-q_proj").result().shards(0).sha256());
}

TEST(Rounds, LeasesCarryShardsDecisionsAndTheRightStatistics) {
  CoreHarness core;
  core.Create(Requant());
  const std::string worker = core.Register("w");
  std::set<std::string> seen;
  WorkOff(&core, worker, [&](const v1::Lease& lease) {
    const std::string part = Part(lease);
    seen.insert(part);
    if (part == "backward-0-0") {
      EXPECT_THAT(lease.shards(), IsEmpty());
      EXPECT_EQ(lease.spec().run_stage().chunks(), 2);
    } else if (part == "backward-1-0") {
      // 2 nodes with gradients and the 2 ends, of 2 chunks each.
      EXPECT_EQ(lease.spec().run_stage().chunks(), 8);
      EXPECT_THAT(lease.spec().run_stage().accumulate(), ElementsAre("weight_gradient"));
      ASSERT_THAT(lease.shards(), SizeIs(7));
      EXPECT_EQ(lease.shards(0).variant(), -1);
      EXPECT_EQ(lease.shards(0).sha256(),
                core.Task("solve-0-0-q_proj").result().shards(0).sha256());
    } else if (part == "score-1-0-k_proj") {
      ASSERT_THAT(lease.shards(), SizeIs(1));
      EXPECT_EQ(lease.statistics(0).stream().task(), "backward-1-0");
      EXPECT_FALSE(lease.has_decision());
    } else if (part == "solve-1-0-k_proj") {
      // Quantized anew from the first round's statistics, with a share of outliers.
      EXPECT_THAT(lease.shards(), IsEmpty());
      ASSERT_THAT(lease.statistics(), SizeIs(1));
      EXPECT_EQ(lease.statistics(0).stream().task(), "backward-0-0");
      EXPECT_TRUE(lease.decision().has_outlier_fraction());
      EXPECT_FALSE(lease.decision().has_threshold());
    } else if (part == "solve-2-0-k_proj") {
      ASSERT_THAT(lease.shards(), SizeIs(1));
      EXPECT_EQ(lease.shards(0).sha256(),
                core.Task("solve-1-0-k_proj").result().shards(0).sha256());
      EXPECT_EQ(lease.statistics(0).stream().task(), "backward-2-0");
      EXPECT_TRUE(lease.decision().has_threshold());
      EXPECT_FALSE(lease.decision().has_outlier_fraction());
    }
  });
  EXPECT_THAT(seen, Contains("solve-2-0-k_proj"));
}

TEST(Rounds, PathChecksCompareTheIntegralWithTheLossAtBothEnds) {
  CoreHarness core;
  core.Create(Requant());
  core.WorkOff(core.Register("w"));
  const v1::JobProgress progress = core.Job().progress();
  ASSERT_THAT(progress.path_checks(), SizeIs(2));
  const v1::PathCheck& check = progress.path_checks(0);
  EXPECT_EQ(check.round(), 1);
  EXPECT_EQ(check.purpose(), "requantize");
  // FakeResult: 0.01 · (1 + ... + 7), and loss 3 + 0.8 t (variant -1).
  EXPECT_NEAR(check.integral(), 0.28, 1e-12);
  EXPECT_NEAR(check.measured(), 0.8, 1e-12);
  EXPECT_NEAR(progress.calibration_loss(), 3, 1e-12);
  EXPECT_EQ(progress.round(), 2);
  EXPECT_EQ(progress.purpose(), "detach");
}

TEST(Rounds, AStatisticStaysUntilTheLastRoundThatReadsIt) {
  CoreHarness core;
  core.Create(Requant());
  const std::string worker = core.Register("w");
  std::vector<std::string> freed;
  WorkOff(&core, worker, [&](const v1::Lease& lease) {
    const bool early = Part(lease).find("-0-0") != std::string::npos ||
                       Part(lease).find("score-1") != std::string::npos;
    for (const v1::StreamName& stream : lease.freed()) {
      if (stream.task() != "backward-0-0") continue;
      EXPECT_FALSE(early) << Part(lease) << " " << stream.lane();
      freed.push_back(stream.lane());
    }
  });
  EXPECT_THAT(freed, Contains(HasSubstr("stat/model.layers.0.self_attn.q_proj")));
}

TEST(Rounds, ALostStatisticOfAnEarlierRoundIsMadeAnewForWhoStillNeedsIt) {
  CoreHarness core;
  core.Create(Requant());
  std::string worker = core.Register("w");
  while (const auto lease = core.Lease(worker)) {
    ASSERT_TRUE(core.Finish(worker, *lease).ok());
    if (Part(*lease) == "solve-1-0-down_proj") break;
  }
  // Its process dies with the statistics of round 0; the round-1 shard of one linear is durable.
  worker = core.Register("w");
  const auto again = core.Lease(worker);
  ASSERT_TRUE(again);
  EXPECT_EQ(Part(*again), "backward-0-0");
  EXPECT_THAT(again->spec().run_stage().linears(), SizeIs(6));
  EXPECT_THAT(again->spec().run_stage().linears(), Not(Contains("model.layers.0.mlp.down_proj")));
  ASSERT_TRUE(core.Finish(worker, *again).ok());
  // What round 1 made for its scores is not needed any more.
  EXPECT_THAT(core.WorkOff(worker), Not(Contains("backward-1-0")));
  EXPECT_EQ(core.Job().state(), v1::Job::ASSEMBLING);
}

TEST(Rounds, ARestartKeepsScoresAndDecisions) {
  CoreHarness core;
  core.Create(Requant());
  std::string worker = core.Register("w");
  while (const auto lease = core.Lease(worker)) {
    ASSERT_TRUE(core.Finish(worker, *lease).ok());
    if (Part(*lease).rfind("solve-1", 0) == 0) break;
  }
  const v1::Decision decided = core.Task("decide-1").result().decision();
  core.Restart();
  EXPECT_EQ(core.Task("decide-1").result().decision().SerializeAsString(),
            decided.SerializeAsString());
  worker = core.Register("w");
  const std::vector<std::string> names = core.WorkOff(worker);
  EXPECT_EQ(names[0], "backward-0-0");
  EXPECT_THAT(names, Not(Contains(StartsWith("score-1"))));
  EXPECT_EQ(core.Job().state(), v1::Job::ASSEMBLING);
}

TEST(Rounds, CoupledTakesTheVariantWithTheLowestLossOnHeldOutWindows) {
  CoreHarness core;
  core.Create(Coupled());
  const std::string worker = core.Register("w");
  bool chose = false;
  WorkOff(&core, worker, [&](const v1::Lease& lease) {
    if (Part(lease) == "solve-2-0-q_proj") {
      // The chosen one alone, from the pass over all windows.
      EXPECT_EQ(lease.decision().variant(), 2);
      ASSERT_THAT(lease.statistics(), SizeIs(1));
      EXPECT_EQ(lease.statistics(0).stream().task(), "backward-2-0");
    }
    if (Part(lease) != "forward-1-0") return;
    EXPECT_FALSE(chose);
    chose = true;
    EXPECT_TRUE(lease.spec().run_stage().loss());
    EXPECT_THAT(lease.spec().run_stage().accumulate(), IsEmpty());
    // 3 variants of 7 linears; 1 chunk of held-out windows for each.
    EXPECT_THAT(lease.shards(), SizeIs(21));
    EXPECT_EQ(lease.spec().run_stage().chunks(), 3);
  });
  EXPECT_TRUE(chose);
  const v1::Decision decision = core.Task("decide-1").result().decision();
  EXPECT_THAT(decision.node_loss(), SizeIs(3));
  EXPECT_EQ(decision.linears(3).variant(), 2);
  EXPECT_EQ(core.Job().progress().shrinkage(), decision.numbers().at("shrinkage"));
  const auto shards = core.core->Shards("jobs/1");
  EXPECT_EQ((*shards)[0].sha256(), core.Task("solve-2-0-q_proj").result().shards(0).sha256());
  // FakeResult: 0.5 for the first shard of each of 7 linears.
  EXPECT_NEAR(core.Job().progress().predicted_loss_increase(), 7 * 0.5, 1e-12);
}

TEST(Rounds, ASolveMustBringAShardPerVariant) {
  CoreHarness core;
  core.Create(Coupled());
  const std::string worker = core.Register("w");
  ASSERT_TRUE(core.Finish(worker, *core.Lease(worker)).ok());
  const auto lease = core.Lease(worker);
  v1::FinishTaskRequest request;
  request.set_session(worker);
  request.set_task(lease->task());
  request.set_attempt(lease->attempt());
  request.set_outcome(v1::FinishTaskRequest::SUCCEEDED);
  *request.mutable_result() = FakeResult(*lease);
  request.mutable_result()->mutable_shards()->RemoveLast();
  EXPECT_THAT(std::string(core.core->FinishTask(core.now(), request).message()),
              HasSubstr("2 of 3"));
}

TEST(Rounds, ADecisionThatCannotBeMadeFailsTheJob) {
  CoreHarness core;
  core.Create(Requant());
  const std::string worker = core.Register("w");
  while (const auto lease = core.Lease(worker)) {
    v1::FinishTaskRequest request;
    request.set_session(worker);
    request.set_task(lease->task());
    request.set_attempt(lease->attempt());
    request.set_outcome(v1::FinishTaskRequest::SUCCEEDED);
    *request.mutable_result() = FakeResult(*lease);
    if (lease->spec().has_score_linear()) request.mutable_result()->mutable_score()->set_weights(0);
    ASSERT_TRUE(core.core->FinishTask(core.now(), request).ok());
  }
  EXPECT_EQ(core.Job().state(), v1::Job::FAILED);
  EXPECT_THAT(core.Job().message(), HasSubstr("decide-1"));
}

// Statistics that wait for a decision can't be worked off: a lone worker without room for more must
// go on all the same, but not while another one has room.
TEST(Rounds, WaitingStatisticsDoNotBlockALoneWorker) {
  NewJob job = TinyJob(2);
  job.spec.set_stages(2);
  v1::Recipe& recipe = *job.spec.mutable_recipe();
  recipe.set_outliers("gwq");
  (*recipe.mutable_outlier_options())["scope"] = "model";
  ResolveRecipe(&job.spec);
  const int64_t memory = JustEnoughMemory(job);
  {
    CoreHarness core;
    core.Create(job);
    const std::vector<std::string> names = core.WorkOff(core.Register("w", memory));
    EXPECT_THAT(names, SizeIs(1 + 2 + 14 + 14));
    EXPECT_EQ(core.Job().state(), v1::Job::ASSEMBLING);
  }
  CoreHarness core;
  core.Create(job);
  const std::string a = core.Register("a", memory), b = core.Register("b", memory);
  ASSERT_TRUE(core.Finish(a, *core.Lease(a)).ok());
  const auto last = core.Lease(b);
  EXPECT_EQ(Part(*last), "backward-0-1");
  ASSERT_TRUE(core.Finish(b, *last).ok());
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(core.Finish(b, *core.Lease(b)).ok());
  // b holds a stage's statistics that wait for the threshold; a has room.
  EXPECT_EQ(core.LeaseName(b), "");
  EXPECT_EQ(core.LeaseName(a), "backward-0-0");
  EXPECT_EQ(core.LeaseName(b), "");
}

}  // namespace
}  // namespace gradq
