// Mixed widths after the solves: the choice, the frontier, other points, how long shards stay.

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"
#include "tests/jobs/core_harness.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

// FakeResult: linears of 10000 weights at 2.5, 3.5 and 4.5 bits, prices 0.5, 0.125, 0.03125.
NewJob Mixed(double average_bits = 3.5) {
  NewJob job = TinyJob(1);
  job.spec.mutable_recipe()->set_average_bits(average_bits);
  job.spec.set_output("/output/mixed");
  return job;
}

NewJob PointOf(const std::string& source, double average_bits) {
  NewJob job;
  job.spec.set_source_job(source);
  job.spec.mutable_recipe()->set_average_bits(average_bits);
  job.spec.set_output(StrCat("/output/point", average_bits));
  job.output_path = job.spec.output();
  return job;
}

class MixedWidths : public testing::Test {
 protected:
  void Finished(const NewJob& job) {
    core_.Create(job);
    core_.WorkOff(core_.Register("w"));
    core_.AssembleAll();
  }
  absl::Status Refused(const NewJob& job) {
    return core_.core->CreateJob(core_.now(), job).status();
  }
  absl::StatusOr<v1::Frontier> Frontier(int max_points = 0, const std::string& name = "jobs/1") {
    v1::GetFrontierRequest request;
    request.set_name(name);
    request.set_max_points(max_points);
    return core_.core->GetFrontier(request);
  }
  // Shard-only removals among the actions.
  std::vector<std::string> Removed() {
    std::vector<std::string> jobs;
    for (const Action& action : core_.core->TakeActions()) {
      const auto* remove = std::get_if<RemoveJobData>(&action);
      if (remove != nullptr && remove->shards_only) jobs.push_back(remove->job);
    }
    return jobs;
  }

  CoreHarness core_;
};

TEST_F(MixedWidths, AreChosenAfterAllSolvesUnderTheBudget) {
  core_.Create(Mixed());
  core_.WorkOff(core_.Register("w"));
  EXPECT_EQ(core_.Task("solve-0-0-o_proj").result().shards_size(), 3);
  const v1::Decision decision = core_.Task("decide-0").result().decision();
  EXPECT_LE(decision.numbers().at("average_bits"), 3.5);
  EXPECT_GT(decision.numbers().at("average_bits"), 3.2);
  // q, k, v share a width.
  EXPECT_EQ(decision.linears(0).variant(), decision.linears(1).variant());
  EXPECT_EQ(decision.linears(0).variant(), decision.linears(2).variant());
  EXPECT_EQ(decision.linears(4).variant(), decision.linears(5).variant());
  EXPECT_EQ(core_.Job().progress().predicted_loss_increase(),
            decision.numbers().at("predicted_loss_increase"));
  const auto shards = core_.core->Shards("jobs/1");
  ASSERT_THAT(*shards, SizeIs(7));
  for (int l = 0; l < 7; ++l) {
    EXPECT_EQ((*shards)[l].average_bits(), 2.5 + decision.linears(l).variant());
  }
  EXPECT_EQ(core_.Job().state(), v1::Job::ASSEMBLING);
}

TEST_F(MixedWidths, PlainObjectivesAreStillPricedByGradients) {
  NewJob job = Mixed();
  job.spec.mutable_recipe()->set_objective("plain");
  core_.Create(job);
  EXPECT_EQ(core_.LeaseName(core_.Register("w")), "backward-0-0");
}

TEST_F(MixedWidths, TheFrontierRisesInBitsAndFallsInLoss) {
  Finished(Mixed());
  const auto frontier = Frontier();
  ASSERT_TRUE(frontier.ok()) << frontier.status();
  EXPECT_DOUBLE_EQ(frontier->least_bits(), 2.5);
  EXPECT_DOUBLE_EQ(frontier->most_bits(), 4.5);
  ASSERT_GT(frontier->points_size(), 5);
  int own = 0;
  for (int p = 0; p < frontier->points_size(); ++p) {
    const v1::Frontier::Point& point = frontier->points(p);
    int linears = 0;
    for (const auto& [bits, count] : point.linears_by_bits()) linears += count;
    EXPECT_EQ(linears, 7);
    own += point.job() == "jobs/1" ? 1 : 0;
    if (p == 0) continue;
    EXPECT_GT(point.average_bits(), frontier->points(p - 1).average_bits());
    EXPECT_LT(point.predicted_loss_increase(), frontier->points(p - 1).predicted_loss_increase());
  }
  EXPECT_EQ(own, 1);
  EXPECT_FALSE(frontier->points(0).has_measured_loss_increase());
  EXPECT_LE(Frontier(2)->points_size(), 3);
  EXPECT_FALSE(Frontier(-1).ok());
  EXPECT_EQ(Frontier(0, "jobs/9").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MixedWidths, AnotherPointIsAJobWithoutComputation) {
  Finished(Mixed());
  const auto made = core_.core->CreateJob(core_.now(), PointOf("jobs/1", 4.5));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->state(), v1::Job::ASSEMBLING);
  EXPECT_EQ(made->spec().model(), "tiny");
  EXPECT_EQ(made->spec().recipe().method(), "lnq");
  EXPECT_EQ(made->spec().recipe().average_bits(), 4.5);
  EXPECT_EQ(made->spec().output(), "/output/point4.5");
  EXPECT_EQ(made->plan().numerics_class(), core_.Job().plan().numerics_class());
  EXPECT_NEAR(made->progress().predicted_loss_increase(), 7 * 0.03125, 1e-12);
  const auto shards = core_.core->Shards("jobs/2");
  ASSERT_THAT(*shards, SizeIs(7));
  for (int l = 0; l < 7; ++l) {
    const std::string solve = StrCat("solve-0-0-", l == 0 ? "q_proj" : "down_proj");
    if (l == 0 || l == 6) {
      EXPECT_EQ((*shards)[l].sha256(), core_.Task(solve).result().shards(2).sha256());
    }
  }
  core_.AssembleAll();
  EXPECT_EQ(core_.Job("jobs/2").state(), v1::Job::SUCCEEDED);
  const v1::Frontier frontier = *Frontier(2);
  EXPECT_EQ(frontier.points(frontier.points_size() - 1).job(), "jobs/2");
}

TEST_F(MixedWidths, APointIsMeasuredByItsValidation) {
  Finished(Mixed());
  NewJob point = PointOf("jobs/1", 2.5);
  point.spec.set_evaluation_blob(std::string(64, 'e'));
  ASSERT_TRUE(core_.core->CreateJob(core_.now(), point).ok());
  core_.AssembleAll();
  const std::string inference = core_.RegisterInference("i");
  const auto lease = core_.Lease(inference);
  ASSERT_TRUE(lease);
  v1::FinishTaskRequest request;
  request.set_session(inference);
  request.set_task(lease->task());
  request.set_attempt(lease->attempt());
  request.set_outcome(v1::FinishTaskRequest::SUCCEEDED);
  request.mutable_result()->mutable_comparison()->set_perplexity(20);
  request.mutable_result()->mutable_comparison()->set_reference_perplexity(10);
  ASSERT_TRUE(core_.core->FinishTask(core_.now(), request).ok());
  const v1::Frontier frontier = *Frontier();
  EXPECT_EQ(frontier.points(0).job(), "jobs/2");
  EXPECT_DOUBLE_EQ(frontier.points(0).measured_loss_increase(), std::log(2.0));
}

TEST_F(MixedWidths, PointsThatCannotBeAreRefused) {
  EXPECT_EQ(Refused(PointOf("jobs/1", 3)).code(), absl::StatusCode::kNotFound);
  core_.Create(Mixed());
  EXPECT_EQ(Refused(PointOf("jobs/1", 3)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Frontier().status().code(), absl::StatusCode::kFailedPrecondition);
  core_.WorkOff(core_.Register("w"));
  EXPECT_TRUE(Frontier().ok());
  EXPECT_THAT(std::string(Refused(PointOf("jobs/1", 3)).message()), HasSubstr("ASSEMBLING"));
  core_.AssembleAll();
  EXPECT_THAT(std::string(Refused(PointOf("jobs/1", 2.4)).message()), HasSubstr("2.5 to 4.5"));
  NewJob spare = PointOf("jobs/1", 3);
  spare.spec.mutable_recipe()->set_method("lnq");
  EXPECT_THAT(std::string(Refused(spare).message()), HasSubstr("recipe"));
  spare = PointOf("jobs/1", 3);
  spare.spec.mutable_recipe()->clear_average_bits();
  EXPECT_EQ(Refused(spare).code(), absl::StatusCode::kInvalidArgument);
  // Nothing of the refused ones is left.
  ASSERT_TRUE(core_.core->CreateJob(core_.now(), PointOf("jobs/1", 3)).ok());
  EXPECT_EQ(core_.Job("jobs/2").state(), v1::Job::ASSEMBLING);
  core_.AssembleAll();
  EXPECT_THAT(std::string(Refused(PointOf("jobs/2", 3)).message()), HasSubstr("jobs/1"));
  NewJob uniform = TinyJob(1);
  core_.Create(uniform);
  EXPECT_THAT(std::string(Frontier(0, "jobs/3").status().message()), HasSubstr("no mixed widths"));
}

TEST_F(MixedWidths, ShardsStayForTheRetentionAndWhileAPointIsMade) {
  Finished(Mixed());
  ASSERT_TRUE(core_.Job().has_shards_expire_time());
  EXPECT_THAT(Removed(), SizeIs(0));
  core_.Pass(core_.options.retention - absl::Minutes(1));
  EXPECT_THAT(Removed(), SizeIs(0));
  ASSERT_TRUE(core_.core->CreateJob(core_.now(), PointOf("jobs/1", 3)).ok());
  core_.Pass(absl::Minutes(2));
  // jobs/2 is being assembled from them.
  std::vector<Action> actions = core_.core->TakeActions();
  ASSERT_THAT(actions, SizeIs(1));
  const std::string job = std::get<StartAssemble>(actions[0]).job;
  ASSERT_EQ(job, "jobs/2");
  ASSERT_TRUE(core_.core->BeginRename(core_.now(), job));
  ASSERT_TRUE(core_.core->FinishAssemble(core_.now(), job, AssembleResult{"/p", "d", 10, 3}).ok());
  core_.Pass(absl::Seconds(1));
  const std::vector<std::string> removed = Removed();
  EXPECT_THAT(removed, testing::ElementsAre("jobs/2", "jobs/1"));
  EXPECT_FALSE(core_.Job().has_shards_expire_time());
  EXPECT_THAT(std::string(Refused(PointOf("jobs/1", 3)).message()), HasSubstr("removed"));
  EXPECT_EQ(Frontier().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(MixedWidths, OtherJobsLoseTheirShardsWithTheArtifact) {
  Finished(TinyJob(1));
  EXPECT_FALSE(core_.Job().has_shards_expire_time());
  EXPECT_THAT(Removed(), testing::ElementsAre("jobs/1"));
}

TEST_F(MixedWidths, APointSurvivesARestart) {
  Finished(Mixed());
  ASSERT_TRUE(core_.core->CreateJob(core_.now(), PointOf("jobs/1", 3)).ok());
  const auto before = *core_.core->Shards("jobs/2");
  core_.Restart();
  const auto after = *core_.core->Shards("jobs/2");
  ASSERT_EQ(after.size(), before.size());
  for (size_t l = 0; l < after.size(); ++l) EXPECT_EQ(after[l].sha256(), before[l].sha256());
  core_.AssembleAll();
  EXPECT_EQ(core_.Job("jobs/2").state(), v1::Job::SUCCEEDED);
  EXPECT_TRUE(core_.Job("jobs/1").has_shards_expire_time());
}

}  // namespace
}  // namespace gradq
