// How attempts and jobs end: failures by class, lost workers and inputs, frees, cancel, assembly,
// validation, restart.

#include <set>
#include <string>
#include <variant>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "tests/jobs/core_harness.h"

namespace gradq {
namespace {

using testing::HasSubstr;
using Outcome = v1::FinishTaskRequest;

NewJob Staged(int stages, bool evaluation = false) {
  NewJob job = TinyJob(stages);
  job.spec.set_stages(stages);
  if (evaluation) job.spec.set_evaluation_blob(Sha256Hex(std::string_view("evaluation")));
  return job;
}

absl::StatusOr<v1::Job> Cancel(CoreHarness& harness, const std::string& etag = "") {
  v1::CancelJobRequest request;
  request.set_name("jobs/1");
  request.set_etag(etag);
  return harness.core->CancelJob(harness.now(), request);
}

// --- failures ---

TEST(Failures, TheFourthRetryableFailureFailsTheJobWithItsReason) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  for (int i = 0; i < 4; ++i) {
    EXPECT_NE(harness.Job().state(), v1::Job::FAILED) << i;
    ASSERT_TRUE(harness.Finish(w, *harness.Lease(w), Outcome::FAILED_RETRYABLE, "odd").ok());
  }
  EXPECT_EQ(harness.Job().state(), v1::Job::FAILED);
  EXPECT_THAT(harness.Job().message(), HasSubstr("backward-0-0: failed 4 times"));
  EXPECT_THAT(harness.Job().message(), HasSubstr("odd"));
  EXPECT_NE(harness.Job().code(), 0);
  EXPECT_FALSE(harness.Lease(w));
  EXPECT_EQ(harness.core->TakeActions().size(), 1u);  // its data may go
}

TEST(Failures, AFatalFailureFailsTheJobAtOnceAndStopsTheOthers) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  const auto forward = harness.Lease(a), backward = harness.Lease(b);
  ASSERT_TRUE(harness.Finish(a, *forward, Outcome::FAILED_FATAL, "NaN in layer 3").ok());
  EXPECT_EQ(harness.Job().state(), v1::Job::FAILED);
  EXPECT_EQ(harness.Job().message(), "forward-0-0: NaN in layer 3");
  const v1::HeartbeatResponse orders = harness.Beat(b, {{*backward, 1}});
  EXPECT_EQ(orders.revoked_size(), 1);
  ASSERT_GE(orders.freed_size(), 1);
  EXPECT_EQ(orders.freed(orders.freed_size() - 1).task(), "");
  EXPECT_EQ(harness.Finish(b, *backward).code(), absl::StatusCode::kAborted);
}

TEST(Failures, AWorkerAtFaultIsAvoidedWhileThereAreOthers) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a), Outcome::FAILED_WORKER, "disk full").ok());
  EXPECT_EQ(harness.Task("backward-0-0").failures(), 0);
  EXPECT_FALSE(harness.Lease(a));
  harness.Pass(absl::Seconds(40), {a});  // b is lost
  EXPECT_EQ(harness.LeaseName(a), "backward-0-0");
}

TEST(Failures, HandingBackForEverEnds) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  for (int i = 0; i < 50 && harness.Job().state() != v1::Job::FAILED; ++i) {
    ASSERT_TRUE(harness.Finish(w, *harness.Lease(w), Outcome::FAILED_WORKER, "no device").ok());
  }
  EXPECT_EQ(harness.Job().state(), v1::Job::FAILED);
  EXPECT_THAT(harness.Job().message(), HasSubstr("no device"));
}

TEST(LostWorkers, TheThirdUnderOneTaskFailsTheJob) {
  CoreHarness harness;
  harness.Create(Staged(1));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(harness.Lease(harness.Register("w")));
  harness.Register("w");
  EXPECT_EQ(harness.Job().state(), v1::Job::FAILED);
  EXPECT_THAT(harness.Job().message(), HasSubstr("backward-0-0: lost 3 workers"));
}

TEST(LostWorkers, OneDeathPerPhaseIsSurvived) {
  CoreHarness harness;
  harness.Create(Staged(3));
  std::set<std::string> died;
  std::string w = harness.Register("w");
  for (int i = 0; i < 500 && harness.Job().state() != v1::Job::ASSEMBLING; ++i) {
    const auto lease = harness.Lease(w);
    ASSERT_TRUE(lease) << harness.Job().ShortDebugString();
    if (died.insert(lease->task()).second) {
      w = harness.Register("w");  // it is killed under each task once
    } else {
      ASSERT_TRUE(harness.Finish(w, *lease).ok());
    }
  }
  EXPECT_EQ(harness.Job().state(), v1::Job::ASSEMBLING);
}

// --- lineage ---

TEST(Lineage, ALostProducerRunsAgainAndItsReaderIsRevoked) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  ASSERT_TRUE(harness.Lease(a));
  const auto backward = harness.Lease(b);
  harness.Beat(b, {{*backward, 1}});
  harness.Register("a");
  EXPECT_EQ(harness.Beat(b, {{*backward, 1}}).revoked(0).task(), backward->task());
  EXPECT_EQ(harness.Task("backward-0-1").state(), v1::Task::PENDING);
  EXPECT_EQ(harness.Task("backward-0-1").failures(), 0);
  EXPECT_EQ(harness.Task("backward-0-1").lost_workers(), 0);
  ASSERT_TRUE(harness.Finish(b, *backward, Outcome::STOPPED).ok());
  EXPECT_EQ(harness.LeaseName(b), "forward-0-0");
}

TEST(Lineage, AReaderThatHasAllChunksGoesOn) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  ASSERT_TRUE(harness.Lease(a));
  const auto backward = harness.Lease(b);
  harness.Beat(b, {{*backward, 2}});
  harness.Register("a");
  EXPECT_EQ(harness.Beat(b, {{*backward, 2}}).revoked_size(), 0);
  EXPECT_TRUE(harness.Finish(b, *backward).ok());
}

TEST(Lineage, OnlyLinearsWithoutAShardAreAccumulatedAgain) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a");
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());  // forward
  const auto first = harness.Lease(a);
  EXPECT_GT(first->spec().run_stage().accumulate_size(), 0);
  EXPECT_EQ(first->spec().run_stage().linears_size(), 0);  // all
  ASSERT_TRUE(harness.Finish(a, *first).ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  const std::string b = harness.Register("a");
  EXPECT_EQ(harness.Task("forward-0-0").state(), v1::Task::PENDING);
  ASSERT_TRUE(harness.Finish(b, *harness.Lease(b)).ok());
  const auto again = harness.Lease(b);
  EXPECT_THAT(again->task(), HasSubstr("backward-0-1"));
  EXPECT_EQ(again->spec().run_stage().linears_size(), 2);
}

TEST(Lineage, AStageWhoseShardsAreDurableRunsAgainForItsGradientsOnly) {
  CoreHarness harness;
  harness.Create(Staged(2));
  std::string a = harness.Register("a");
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  EXPECT_EQ(harness.Job().progress().linears_done(), 7);
  a = harness.Register("a");  // all streams are gone, backward-0-0 is still to come
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  const auto again = harness.Lease(a);
  EXPECT_THAT(again->task(), HasSubstr("backward-0-1"));
  EXPECT_EQ(again->spec().run_stage().accumulate_size(), 0);
  ASSERT_TRUE(harness.Finish(a, *again).ok());
  EXPECT_EQ(harness.LeaseName(a), "backward-0-0");
}

TEST(Lineage, NothingRunsAgainWhenNobodyNeedsIt) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());  // forward on a
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(harness.Finish(b, *harness.Lease(b)).ok());
  ASSERT_TRUE(harness.Finish(b, *harness.Lease(b)).ok());  // backward-0-0 on b
  harness.Register("a");
  EXPECT_EQ(harness.Task("forward-0-0").state(), v1::Task::SUCCEEDED);
  EXPECT_THAT(harness.LeaseName(b), testing::StartsWith("solve-0-0-"));
}

TEST(Lineage, AReportedLossIsBelievedAndCountsOnlyWhenTheWorkerIsDead) {
  for (const bool dead : {true, false}) {
    CoreHarness harness;
    harness.Create(Staged(2));
    const std::string a = harness.Register("a"), b = harness.Register("b");
    const auto forward = harness.Lease(a), backward = harness.Lease(b);
    v1::FinishTaskRequest lost;
    lost.set_session(b);
    lost.set_task(backward->task());
    lost.set_attempt(backward->attempt());
    lost.set_outcome(Outcome::INPUT_LOST);
    ASSERT_TRUE(harness.core->FinishTask(harness.now(), lost).ok());
    EXPECT_EQ(harness.Task("forward-0-0").state(), v1::Task::PENDING);
    EXPECT_EQ(harness.LeaseName(b), "forward-0-0");
    if (!dead) {
      EXPECT_EQ(harness.Beat(a, {{*forward, 0}}).revoked_size(), 1);
      ASSERT_TRUE(harness.Finish(a, *forward, Outcome::STOPPED).ok());
    }
    harness.Pass(absl::Seconds(25), {b});
    harness.Pass(absl::Seconds(10), {b});
    EXPECT_EQ(harness.Task("forward-0-0").lost_workers(), dead ? 1 : 0);
  }
}

TEST(Retention, InputsStayUntilTheStageIsSolvedAndStatisticsUntilTheirShardIsDurable) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a");
  const auto freed = [&] {
    std::vector<std::string> lanes;
    const v1::HeartbeatResponse orders = harness.Beat(a);
    for (const v1::StreamName& stream : orders.freed()) {
      lanes.push_back(StrCat(stream.task(), "/", stream.lane()));
    }
    return lanes;
  };
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  EXPECT_THAT(freed(), testing::IsEmpty());
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  EXPECT_THAT(freed(), testing::ElementsAre("backward-0-1/stat/model.layers.1.mlp.down_proj"));
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  EXPECT_THAT(freed(), testing::Contains("forward-0-0/out"));
  EXPECT_THAT(freed(), testing::Not(testing::Contains("backward-0-1/out")));
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());  // backward-0-0
  EXPECT_THAT(freed(), testing::Not(testing::Contains("backward-0-1/out")));
  harness.WorkOff(a);
  EXPECT_THAT(freed(), testing::Contains("backward-0-1/out"));
}

// --- drain ---

TEST(Drain, ALeavingWorkerFinishesItsTaskAndIsGone) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a");
  const auto lease = harness.Lease(a);
  v1::DrainWorkerRequest request;
  request.set_session(a);
  ASSERT_TRUE(harness.core->DrainWorker(harness.now(), request).ok());
  EXPECT_TRUE(harness.Beat(a, {{*lease, 1}}).drain());
  ASSERT_TRUE(harness.Finish(a, *lease).ok());
  EXPECT_EQ(harness.core->ListWorkers({})->workers(0).state(), v1::Worker::GONE);
  EXPECT_EQ(harness.Task("backward-0-0").state(), v1::Task::PENDING);  // its statistics went along
  EXPECT_EQ(harness.Task("backward-0-0").lost_workers(), 0);
}

TEST(Drain, AWorkerDrainedByAnOperatorGetsNoLeasesButKeepsServing) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  v1::DrainWorkerRequest request;
  request.set_worker("workers/a");
  ASSERT_TRUE(harness.core->DrainWorker(harness.now(), request).ok());
  EXPECT_FALSE(harness.Lease(a));
  EXPECT_EQ(harness.WorkOff(b).size(), 7u);  // pulled from a
  request.set_worker("nobody");
  EXPECT_EQ(harness.core->DrainWorker(harness.now(), request).code(), absl::StatusCode::kNotFound);
}

// --- cancel ---

TEST(Cancel, AQueuedJobIsCancelledAtOnceAndAgain) {
  CoreHarness harness;
  harness.Create(Staged(1));
  EXPECT_EQ(Cancel(harness, "stale").status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Cancel(harness, harness.Job().etag())->state(), v1::Job::CANCELLED);
  EXPECT_EQ(Cancel(harness, "stale")->state(), v1::Job::CANCELLED);
  EXPECT_FALSE(harness.Lease(harness.Register("w")));
}

TEST(Cancel, ARunningJobWaitsForItsWorkersToStop) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  const auto first = harness.Lease(a), second = harness.Lease(b);
  EXPECT_EQ(Cancel(harness)->state(), v1::Job::CANCELLING);
  EXPECT_EQ(harness.Beat(a, {{*first, 1}}).revoked_size(), 1);
  EXPECT_EQ(harness.core->CheckAttempt(a, first->task(), 1).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(harness.Finish(a, *first, Outcome::STOPPED).ok());
  EXPECT_EQ(harness.Job().state(), v1::Job::CANCELLING);
  EXPECT_EQ(harness.Finish(b, *second).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.Job().state(), v1::Job::CANCELLED);
  EXPECT_EQ(harness.core->TakeActions().size(), 1u);
}

TEST(Cancel, AWorkerThatNeverStopsDoesNotHoldItUp) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a");
  const auto lease = harness.Lease(a);
  ASSERT_TRUE(Cancel(harness).ok());
  for (int i = 0; i < 10; ++i) {
    harness.Pass(absl::Seconds(4));
    harness.Beat(a, {{*lease, 1}});
  }
  EXPECT_EQ(harness.Job().state(), v1::Job::CANCELLED);
}

TEST(Cancel, LosesAgainstTheRenameAndWinsBeforeIt) {
  CoreHarness harness;
  harness.Create(Staged(1));
  harness.WorkOff(harness.Register("w"));
  EXPECT_EQ(Cancel(harness)->state(), v1::Job::CANCELLING);
  EXPECT_FALSE(harness.core->BeginRename(harness.now(), "jobs/1"));
  EXPECT_EQ(harness.Job().state(), v1::Job::CANCELLED);
  EXPECT_TRUE(harness.Job().artifact_path().empty());

  CoreHarness other;
  other.Create(Staged(1));
  other.WorkOff(other.Register("w"));
  ASSERT_TRUE(other.core->BeginRename(other.now(), "jobs/1"));
  EXPECT_EQ(Cancel(other).status().code(), absl::StatusCode::kFailedPrecondition);
  other.Restart();
  EXPECT_EQ(Cancel(other).status().code(), absl::StatusCode::kFailedPrecondition);
  const auto actions = other.core->TakeActions();
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_TRUE(std::get<StartAssemble>(actions[0]).may_be_renamed);
}

TEST(Cancel, ARenameThatCannotBeRecordedIsNotAllowed) {
  CoreHarness harness;
  harness.Create(Staged(1));
  harness.WorkOff(harness.Register("w"));
  harness.store.failure = absl::UnavailableError("disk");
  EXPECT_FALSE(harness.core->BeginRename(harness.now(), "jobs/1"));
  harness.store.failure = absl::OkStatus();
  EXPECT_TRUE(Cancel(harness).ok());
}

// --- assembly, validation ---

TEST(Assembly, FailsTheJobWithItsError) {
  CoreHarness harness;
  harness.Create(Staged(1));
  harness.WorkOff(harness.Register("w"));
  ASSERT_TRUE(harness.core->BeginRename(harness.now(), "jobs/1"));
  ASSERT_TRUE(
      harness.core
          ->FinishAssemble(harness.now(), "jobs/1", absl::ResourceExhaustedError("disk full: /out"))
          .ok());
  EXPECT_EQ(harness.Job().state(), v1::Job::FAILED);
  EXPECT_EQ(harness.Job().message(), "assemble: disk full: /out");
  EXPECT_EQ(harness.Job().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
}

TEST(Assembly, WithoutEvaluationTextTheJobSucceedsAtTheRename) {
  CoreHarness harness;
  harness.Create(Staged(1));
  harness.WorkOff(harness.Register("w"));
  harness.AssembleAll();
  const v1::Job job = harness.Job();
  EXPECT_EQ(job.state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(job.validation().state(), v1::Validation::NOT_REQUESTED);
  EXPECT_EQ(job.artifact_path(), "/out");
  EXPECT_EQ(job.progress().artifact_bytes(), 10);
  EXPECT_EQ(harness.core->Shards("jobs/1")->size(), 7u);
  EXPECT_EQ(Cancel(harness).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(harness.EventTypes("jobs/1").back(), "job.succeeded");
}

TEST(Validation, GoesToInferenceWorkersOnlyAndItsResultIsKept) {
  CoreHarness harness;
  harness.Create(Staged(1, true));
  const std::string w = harness.Register("w"), i = harness.RegisterInference("i");
  EXPECT_FALSE(harness.Lease(i));
  harness.WorkOff(w);
  harness.AssembleAll();
  EXPECT_EQ(harness.Job().state(), v1::Job::VALIDATING);
  EXPECT_FALSE(harness.Lease(w));
  const auto lease = harness.Lease(i);
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->job().artifact_path(), "/out");
  EXPECT_EQ(harness.Job().validation().state(), v1::Validation::RUNNING);
  v1::FinishTaskRequest finish;
  finish.set_session(i);
  finish.set_task(lease->task());
  finish.set_attempt(1);
  finish.set_outcome(Outcome::SUCCEEDED);
  finish.mutable_result()->mutable_comparison()->set_kl(0.25);
  ASSERT_TRUE(harness.core->FinishTask(harness.now(), finish).ok());
  EXPECT_EQ(harness.Job().state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(harness.Job().validation().state(), v1::Validation::DONE);
  EXPECT_DOUBLE_EQ(harness.Job().validation().comparison().kl(), 0.25);
}

TEST(Validation, IsSkippedWhenNobodyTakesItInTime) {
  CoreHarness harness;
  NewJob job = Staged(1, true);
  job.spec.set_validate_timeout_s(60);
  harness.Create(job);
  const std::string w = harness.Register("w");
  harness.WorkOff(w);
  harness.AssembleAll();
  harness.Pass(absl::Seconds(59), {w});
  EXPECT_EQ(harness.Job().state(), v1::Job::VALIDATING);
  harness.Pass(absl::Seconds(2), {w});
  EXPECT_EQ(harness.Job().state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(harness.Job().validation().state(), v1::Validation::SKIPPED);
  EXPECT_THAT(harness.Job().message(), HasSubstr("60 s"));
}

TEST(Validation, ThatFailsLeavesTheArtifactAndTheJobSucceeded) {
  CoreHarness harness;
  harness.Create(Staged(1, true));
  harness.WorkOff(harness.Register("w"));
  harness.AssembleAll();
  const std::string i = harness.RegisterInference("i");
  ASSERT_TRUE(harness.Finish(i, *harness.Lease(i), Outcome::FAILED_FATAL, "bad text").ok());
  EXPECT_EQ(harness.Job().state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(harness.Job().validation().state(), v1::Validation::FAILED);
  EXPECT_THAT(harness.Job().validation().message(), HasSubstr("bad text"));
}

// --- time and restart ---

TEST(Time, PhasesAndIdleSecondsAreWallTime) {
  CoreHarness harness;
  harness.Create(Staged(2));
  harness.Pass(absl::Seconds(7));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  const auto forward = harness.Lease(a), backward = harness.Lease(b);
  harness.Pass(absl::Seconds(4), {a, b});
  ASSERT_TRUE(harness.Finish(a, *forward).ok());
  ASSERT_TRUE(harness.Finish(b, *backward).ok());
  harness.Pass(absl::Seconds(3), {a, b});
  ASSERT_TRUE(harness.Lease(a));
  const v1::JobProgress progress = harness.Job().progress();
  EXPECT_NEAR(progress.phase_seconds().at("queue"), 7, 1e-6);
  EXPECT_NEAR(progress.phase_seconds().at("forward"), 4, 1e-6);
  EXPECT_NEAR(progress.phase_seconds().at("backward"), 4, 1e-6);
  EXPECT_NEAR(progress.idle_seconds(), 3, 1e-6);
}

TEST(Time, ACoordinatorThatStoodStillBlamesNobody) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a");
  const auto lease = harness.Lease(a);
  harness.clock.Advance(absl::Seconds(300));
  ASSERT_TRUE(harness.core->Tick(harness.now()).ok());
  EXPECT_TRUE(harness.Finish(a, *lease).ok());
}

TEST(Restart, ARunningSolveMayFinishUnderItsOldSession) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a");
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
  const auto solve = harness.Lease(a);
  harness.Restart();
  v1::HeartbeatRequest beat;
  beat.set_session(a);
  EXPECT_EQ(harness.core->Heartbeat(harness.now(), beat).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(harness.core->CheckAttempt(a, solve->task(), solve->attempt()).ok());
  EXPECT_TRUE(harness.Finish(a, *solve).ok());
  EXPECT_EQ(harness.Job().progress().linears_done(), 1);
  // The rest of its statistics can't be reached any more.
  EXPECT_EQ(harness.Task("backward-0-0").state(), v1::Task::PENDING);
  EXPECT_EQ(harness.LeaseName(harness.Register("a")), "backward-0-0");
}

TEST(Restart, ARunningSolveIsFencedWhenItsWorkerRegistersAgainOrNotAtAll) {
  for (const bool returns : {true, false}) {
    CoreHarness harness;
    harness.Create(Staged(1));
    const std::string a = harness.Register("a");
    ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());
    const auto solve = harness.Lease(a);
    harness.Restart();
    const std::string next = harness.Register(returns ? "a" : "b");
    harness.Pass(absl::Seconds(returns ? 1 : 31), {next});
    EXPECT_EQ(harness.Finish(a, *solve).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(harness.Task("solve-0-0-down_proj").lost_workers(), 0);
    EXPECT_EQ(harness.WorkOff(next).size(), 8u);
    EXPECT_EQ(harness.Job().state(), v1::Job::ASSEMBLING);
  }
}

TEST(Restart, ListsSurvive) {
  CoreHarness harness;
  harness.Create(Staged(1, true));
  harness.WorkOff(harness.Register("w"));
  harness.AssembleAll();
  const std::string before = harness.Job().ShortDebugString();
  const size_t events = harness.EventTypes("jobs/1").size();
  harness.Restart();
  EXPECT_EQ(harness.Job().ShortDebugString(), before);
  EXPECT_EQ(harness.EventTypes("jobs/1").size(), events);
  EXPECT_EQ(harness.Create(Staged(1)).name(), "jobs/2");
  const std::string i = harness.RegisterInference("i");
  EXPECT_EQ(harness.LeaseName(i), "validate");
}

}  // namespace
}  // namespace gradq
