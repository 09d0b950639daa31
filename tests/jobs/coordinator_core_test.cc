// The core's contract towards clients and workers, one behaviour per test: what is leased to whom,
// and what a request may not do.

#include "lib/jobs/coordinator_core.h"

#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"
#include "tests/jobs/core_harness.h"

namespace gradq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Outcome = v1::FinishTaskRequest;

NewJob Staged(int stages) {
  NewJob job = TinyJob(stages);
  job.spec.set_stages(stages);
  return job;
}

// --- creating and listing ---

TEST(CreateJob, TheSameRequestMakesOneJobAlsoAfterARestart) {
  CoreHarness harness;
  NewJob job = TinyJob(1);
  job.request_id = "r1";
  EXPECT_EQ(harness.Create(job).name(), "jobs/1");
  EXPECT_EQ(harness.Create(job).name(), "jobs/1");
  harness.Restart();
  EXPECT_EQ(harness.Create(job).name(), "jobs/1");
  EXPECT_EQ(harness.core->FindRequest("r1", job.spec).value()->name(), "jobs/1");
  EXPECT_FALSE(harness.core->FindRequest("r2", job.spec).value().has_value());
  job.spec.set_sequences(6);
  EXPECT_EQ(harness.core->CreateJob(harness.now(), job).status().code(),
            absl::StatusCode::kAlreadyExists);
  job.request_id = "";
  EXPECT_EQ(harness.Create(job).name(), "jobs/2");
  EXPECT_EQ(harness.Create(job).name(), "jobs/3");
}

TEST(CreateJob, AFullQueueIsRefused) {
  CoreHarness harness;
  harness.options.max_queued_jobs = 2;
  harness.Restart();
  harness.Create(TinyJob(1));
  harness.Create(TinyJob(1));
  EXPECT_EQ(harness.core->CreateJob(harness.now(), TinyJob(1)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(CreateJob, WhatCannotBeStoredDoesNotExist) {
  CoreHarness harness;
  NewJob job = TinyJob(1);
  job.request_id = "r1";
  harness.store.failure = absl::ResourceExhaustedError("disk full");
  EXPECT_EQ(harness.core->CreateJob(harness.now(), job).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(harness.core->GetJob("jobs/1").status().code(), absl::StatusCode::kNotFound);
  harness.store.failure = absl::OkStatus();
  EXPECT_EQ(harness.Create(job).name(), "jobs/1");
  EXPECT_THAT(harness.EventTypes(""), ElementsAre("job.created"));
}

TEST(Names, OnlyJobNamesAreAccepted) {
  CoreHarness harness;
  harness.Create(TinyJob(1));
  for (const char* name : {"", "1", "jobs/", "jobs/x", "jobs/01", "jobs/-1", "jobs/1/tasks/a",
                           "jobs/1 ", "jobs/99999999999999999999"}) {
    EXPECT_EQ(harness.core->GetJob(name).status().code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
  EXPECT_EQ(harness.core->GetJob("jobs/2").status().code(), absl::StatusCode::kNotFound);
}

TEST(Lists, PagesCoverAllNewestFirstAndForeignTokensAreRefused) {
  CoreHarness harness;
  for (int i = 0; i < 5; ++i) harness.Create(TinyJob(1));
  v1::ListJobsRequest request;
  request.set_page_size(2);
  std::vector<std::string> names;
  while (true) {
    const v1::ListJobsResponse page = harness.core->ListJobs(request).value();
    for (const v1::Job& job : page.jobs()) names.push_back(job.name());
    if (page.next_page_token().empty()) break;
    request.set_page_token(page.next_page_token());
  }
  EXPECT_THAT(names, ElementsAre("jobs/5", "jobs/4", "jobs/3", "jobs/2", "jobs/1"));

  v1::ListTasksRequest tasks;
  tasks.set_parent("jobs/1");
  tasks.set_page_token(request.page_token());
  EXPECT_EQ(harness.core->ListTasks(tasks).status().code(), absl::StatusCode::kInvalidArgument);
  request.set_page_token("jobs/3");
  EXPECT_EQ(harness.core->ListJobs(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.set_page_token("");
  request.set_page_size(-1);
  EXPECT_EQ(harness.core->ListJobs(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Lists, TasksAndWorkersPage) {
  CoreHarness harness;
  harness.Create(Staged(2));
  harness.Register("b");
  const std::string a = harness.Register("a");
  ASSERT_TRUE(harness.Lease(a));
  v1::ListTasksRequest request;
  request.set_parent("jobs/1");
  request.set_page_size(4);
  int tasks = 0;
  do {
    const v1::ListTasksResponse page = harness.core->ListTasks(request).value();
    tasks += page.tasks_size();
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(tasks, 3 + 14 + 1);
  v1::ListWorkersRequest workers;
  workers.set_page_size(1);
  v1::ListWorkersResponse page = harness.core->ListWorkers(workers).value();
  EXPECT_EQ(page.workers(0).name(), "workers/a");
  EXPECT_EQ(page.workers(0).task(), "jobs/1/tasks/forward-0-0");
  workers.set_page_token(page.next_page_token());
  page = harness.core->ListWorkers(workers).value();
  EXPECT_EQ(page.workers(0).name(), "workers/b");
  EXPECT_TRUE(page.next_page_token().empty());
}

TEST(Revision, GrowsAndTheEtagChangesWithEveryStoredChange) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const v1::Job before = harness.Job();
  const int64_t changed = harness.core->changed();
  const std::string w = harness.Register("w");
  const auto lease = harness.Lease(w);
  const v1::Job leased = harness.Job();
  EXPECT_GT(leased.revision(), before.revision());
  EXPECT_NE(leased.etag(), before.etag());
  EXPECT_GT(harness.core->changed(), changed);
  harness.Beat(w, {{*lease, 1}});
  EXPECT_GT(harness.Job().revision(), leased.revision());
  EXPECT_EQ(harness.Job().progress().chunks_done(), 1);
  const int64_t revision = harness.Job().revision();
  harness.Restart();
  EXPECT_GE(harness.Job().revision(), revision);
}

// --- the graph and its schedule ---

TEST(Schedule, OneWorkerRunsForwardThenEachStageBackwardWithItsSolves) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::vector<std::string> names = harness.WorkOff(harness.Register("w"));
  ASSERT_EQ(names.size(), 3u + 14u);
  EXPECT_EQ(names[0], "forward-0-0");
  EXPECT_EQ(names[1], "backward-0-1");
  // The dearest first: down_proj has the most columns.
  EXPECT_EQ(names[2], "solve-0-1-down_proj");
  EXPECT_EQ(names[9], "backward-0-0");
  for (int i = 10; i < 17; ++i) EXPECT_THAT(names[i], testing::StartsWith("solve-0-0-"));
  EXPECT_EQ(harness.Job().state(), v1::Job::ASSEMBLING);
  EXPECT_DOUBLE_EQ(harness.Job().progress().predicted_loss_increase(), 7.0);
  EXPECT_DOUBLE_EQ(harness.Job().progress().calibration_loss(), 3.0);
}

TEST(Schedule, PlainNeedsNoBackwardAndRtnNoStagesAtAll) {
  CoreHarness harness;
  NewJob plain = Staged(2);
  plain.spec.mutable_recipe()->set_objective("plain");
  harness.Create(plain);
  const std::string w = harness.Register("w");
  std::vector<std::string> names = harness.WorkOff(w);
  EXPECT_EQ(names[0], "forward-0-0");
  EXPECT_EQ(names[8], "forward-0-1");
  EXPECT_EQ(names.size(), 2u + 14u);

  NewJob rtn = Staged(2);
  rtn.spec.mutable_recipe()->set_method("rtn");
  ResolveRecipe(&rtn.spec);
  harness.Create(rtn);
  names = harness.WorkOff(w);
  EXPECT_EQ(names.size(), 14u);
  for (const std::string& name : names) EXPECT_THAT(name, testing::StartsWith("solve-"));
}

TEST(Schedule, StagesFlowAtOnceOnTwoWorkers) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  const auto forward = harness.Lease(a);
  EXPECT_THAT(forward->task(), HasSubstr("forward-0-0"));
  const auto backward = harness.Lease(b);
  ASSERT_TRUE(backward);
  EXPECT_THAT(backward->task(), HasSubstr("backward-0-1"));
  EXPECT_EQ(backward->activations().address(), "a:1");
  EXPECT_EQ(backward->activations().worker(), a);
  EXPECT_EQ(backward->activations().stream().attempt(), 1);
  EXPECT_TRUE(backward->spec().run_stage().loss());
  EXPECT_EQ(backward->read_token(), forward->read_token());
  ASSERT_TRUE(harness.Finish(a, *forward).ok());
  EXPECT_EQ(harness.LeaseName(a), "backward-0-0");
}

TEST(Schedule, IdleWorkersPullStatisticsOnlyWhenTheHolderHasMoreThanItCanStart) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  ASSERT_TRUE(harness.Finish(a, *harness.Lease(a)).ok());  // backward-0-0: a holds seven statistics
  std::vector<v1::Lease> leases;
  for (int i = 0; i < 5; ++i) {
    leases.push_back(*harness.Lease(i % 2 == 0 ? a : b));
    if (i % 2 == 1) {
      EXPECT_EQ(leases.back().statistics(0).address(), "a:1");
      EXPECT_EQ(leases.back().statistics(0).worker(), a);
      ASSERT_TRUE(harness.Finish(b, leases.back()).ok());
    } else if (i < 4) {
      ASSERT_TRUE(harness.Finish(a, leases.back()).ok());
    }
  }
  // Two are left and a is busy with the fifth: b takes one; a is idle again: the last one is left
  // to a.
  const auto sixth = harness.Lease(b);
  ASSERT_TRUE(sixth);
  ASSERT_TRUE(harness.Finish(b, *sixth).ok());
  ASSERT_TRUE(harness.Finish(a, leases.back()).ok());
  EXPECT_FALSE(harness.Lease(b));
  EXPECT_TRUE(harness.Lease(a));
}

TEST(Schedule, ASmallWorkerSolvesBeforeItRunsAnotherBackwardStage) {
  for (const int64_t memory : {int64_t{1}, int64_t{0}, int64_t{1} << 40}) {
    CoreHarness harness;
    NewJob job = Staged(2);
    harness.Create(job);
    // A plan that fits the memory is not the point here: the job is planned for the big worker.
    const std::string big = harness.Register("big");
    ASSERT_TRUE(harness.Finish(big, *harness.Lease(big)).ok());
    const std::string worker = harness.Register("w", memory);
    ASSERT_TRUE(harness.Finish(worker, *harness.Lease(worker)).ok());  // backward-0-1
    std::vector<std::pair<std::string, v1::Lease>> held;
    const std::vector<std::string> others = {"h0", "h1", "h2", "h3", "h4", "h5", "h6"};
    for (const std::string& name : others) {
      const std::string session = harness.Register(name);
      const auto lease = harness.Lease(session);
      if (!lease) continue;
      if (lease->spec().has_solve_linear()) {
        held.emplace_back(session, *lease);
      } else {
        ASSERT_TRUE(harness.Finish(session, *lease, Outcome::STOPPED).ok());
      }
    }
    ASSERT_EQ(held.size(), 6u);  // the seventh is left to the holder
    EXPECT_THAT(harness.LeaseName(worker), testing::StartsWith("solve-0-1-"));
    ASSERT_TRUE(harness.Finish(worker, *harness.Lease(worker)).ok());
    // Its statistics are all being solved elsewhere, but it still holds them.
    EXPECT_EQ(harness.LeaseName(worker), memory == 1 ? "" : "backward-0-0") << memory;
    if (memory != 1) continue;
    for (const auto& [session, lease] : held) ASSERT_TRUE(harness.Finish(session, lease).ok());
    const auto next = harness.Lease(worker);
    ASSERT_TRUE(next);
    EXPECT_THAT(next->task(), HasSubstr("backward-0-0"));
    EXPECT_GE(next->freed_size(), 7);
  }
}

TEST(Schedule, OtherNumericsClassesGetNothingOfAStartedJob) {
  CoreHarness harness;
  harness.Create(Staged(2));
  const std::string a = harness.Register("a", 0, "avx512"), b = harness.Register("b", 0, "avx2");
  const auto lease = harness.Lease(a);
  ASSERT_TRUE(lease);
  EXPECT_EQ(harness.Job().plan().numerics_class(), "avx512");
  EXPECT_FALSE(harness.Lease(b));
  // With everything of it lost, the other class may start over.
  harness.Pass(absl::Seconds(40), {b});
  EXPECT_EQ(harness.LeaseName(b), "forward-0-0");
  EXPECT_EQ(harness.Job().plan().numerics_class(), "avx2");
}

TEST(Schedule, OldestJobFirstAndTheNextWhenItHasNothingToDo) {
  CoreHarness harness;
  harness.Create(Staged(1));
  harness.Create(Staged(1));
  const std::string a = harness.Register("a"), b = harness.Register("b");
  EXPECT_THAT(harness.Lease(a)->task(), HasSubstr("jobs/1/"));
  EXPECT_EQ(harness.Job("jobs/2").state(), v1::Job::QUEUED);
  EXPECT_THAT(harness.Lease(b)->task(), HasSubstr("jobs/2/"));
}

TEST(Schedule, AJobThatCannotBePlannedFails) {
  CoreHarness harness;
  NewJob job = TinyJob(1);
  job.spec.set_stages(5);  // of one block
  harness.Create(job);
  EXPECT_FALSE(harness.Lease(harness.Register("a")));
  EXPECT_EQ(harness.Job().state(), v1::Job::FAILED);
  EXPECT_EQ(harness.Job().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(harness.Job().message().empty());
}

// --- sessions and attempts ---

TEST(Attempts, AnUnansweredLeaseIsGivenAgain) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  const auto first = harness.Lease(w), second = harness.Lease(w);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(*first, *second));
  EXPECT_EQ(harness.Task("backward-0-0").attempt(), 1);
}

TEST(Attempts, ALeaseTheWorkerNeverListsIsTakenBack) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  const auto lease = harness.Lease(w);
  harness.Pass(absl::Seconds(45), {w});
  EXPECT_EQ(harness.Task("backward-0-0").state(), v1::Task::PENDING);
  EXPECT_EQ(harness.Finish(w, *lease).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.Lease(w)->attempt(), 2);
}

TEST(Attempts, AFencedAttemptIsRefusedEverywhere) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string old = harness.Register("w");
  const auto lease = harness.Lease(old);
  EXPECT_TRUE(harness.core->CheckAttempt(old, lease->task(), 1).ok());
  const std::string fresh = harness.Register("w");  // the process was replaced
  EXPECT_EQ(harness.core->CheckAttempt(old, lease->task(), 1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.Finish(old, *lease).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.core->TryLease(harness.now(), old).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(harness.core->ContextFor(old, "jobs/1").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(harness.Task("backward-0-0").lost_workers(), 1);
  EXPECT_EQ(harness.Lease(fresh)->attempt(), 2);
}

TEST(Attempts, AnEarlierAttemptOfTheSameSessionIsFencedToo) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  const auto first = harness.Lease(w);
  ASSERT_TRUE(harness.Finish(w, *first, Outcome::STOPPED).ok());
  const auto second = harness.Lease(w);
  EXPECT_EQ(second->attempt(), 2);
  EXPECT_EQ(harness.core->CheckAttempt(w, first->task(), 1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.Finish(w, *first).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.Beat(w, {{*first, 1}}).revoked_size(), 1);
  EXPECT_TRUE(harness.Finish(w, *second).ok());
}

TEST(Attempts, ARepeatedResultIsOkAndChangesNothing) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  ASSERT_TRUE(harness.Finish(w, *harness.Lease(w)).ok());
  const auto solve = harness.Lease(w);
  ASSERT_TRUE(harness.Finish(w, *solve).ok());
  const int64_t revision = harness.Job().revision();
  EXPECT_TRUE(harness.Finish(w, *solve).ok());
  EXPECT_EQ(harness.Job().revision(), revision);
  EXPECT_EQ(harness.Finish(w, *solve, Outcome::FAILED_FATAL).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(harness.Job().state(), v1::Job::RUNNING);
}

TEST(Attempts, AShardOfAnotherLinearIsAFailureOfTheTask) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  ASSERT_TRUE(harness.Finish(w, *harness.Lease(w)).ok());
  v1::Lease solve = *harness.Lease(w);
  solve.mutable_spec()->mutable_solve_linear()->set_linear("model.layers.9.mlp.up_proj");
  EXPECT_EQ(harness.Finish(w, solve).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.Task("solve-0-0-down_proj").failures(), 1);
  EXPECT_EQ(harness.Job().progress().linears_done(), 0);
}

TEST(Attempts, AnAnswerIsNeverAheadOfTheStore) {
  CoreHarness harness;
  harness.Create(Staged(1));
  const std::string w = harness.Register("w");
  const v1::Lease lease = *harness.Lease(w);
  harness.store.failure = absl::ResourceExhaustedError("disk full");
  EXPECT_EQ(harness.Finish(w, lease).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(harness.Finish(w, lease).code(), absl::StatusCode::kResourceExhausted);
  harness.store.failure = absl::OkStatus();
  EXPECT_TRUE(harness.Finish(w, lease).ok());
  harness.Restart();
  EXPECT_DOUBLE_EQ(harness.Job().progress().calibration_loss(), 3.0);
}

}  // namespace
}  // namespace gradq
