// Jobs of several rounds and of mixed widths through the coordinator's services: decisions, kept
// shards, other points of a frontier, how long they stay.

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "lib/format/inspect.h"
#include "services/coordinator/assembly.h"
#include "tests/services/coordinator_fixture.h"

namespace gradq {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using Jobs = v1::JobService::Stub;

class CoordinatorRounds : public CoordinatorFixture {
 protected:
  // Takes every open job to its end.
  void Work() {
    FakeWorker worker(channel_, "w1");
    FakeWorker inference(channel_, "i1", v1::Worker::INFERENCE);
    ASSERT_TRUE(worker.Register().ok());
    ASSERT_TRUE(inference.Register().ok());
    ASSERT_TRUE(worker.WorkUntilIdle(absl::Milliseconds(500)).ok());
    ASSERT_TRUE(inference.WorkUntilIdle(absl::Milliseconds(500)).ok());
  }
  v1::JobSpec MixedSpec(const std::string& output, double average_bits) {
    v1::JobSpec spec = Spec(output);
    spec.mutable_recipe()->set_average_bits(average_bits);
    spec.set_evaluation_blob(MustUpload(FixtureText("validation.txt")));
    spec.set_evaluation_sequences(3);
    return spec;
  }
  v1::JobSpec PointSpec(const std::string& source, const std::string& output, double bits) {
    v1::JobSpec spec;
    spec.set_source_job(source);
    spec.set_output(output);
    spec.mutable_recipe()->set_average_bits(bits);
    return spec;
  }
  // A job with mixed widths at its end.
  v1::Job MakeMixed(const std::string& output = "mixed") {
    const auto created = Create(MixedSpec(output, 4));
    EXPECT_TRUE(created.ok()) << created.status();
    Work();
    const auto job = WaitForEnd(created->name());
    EXPECT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->state(), v1::Job::SUCCEEDED) << job->message();
    return *job;
  }
  absl::StatusOr<v1::Frontier> Frontier(const std::string& job, int points = 0) {
    v1::GetFrontierRequest request;
    request.set_name(job);
    request.set_max_points(points);
    return Call(&Jobs::GetFrontier, request);
  }
  json Report(const std::string& output) {
    return json::parse(*ReadFile(Output(output) + "/report.json"));
  }
};

TEST_F(CoordinatorRounds, AFrontierOfMixedWidths) {
  const v1::Job job = MakeMixed();
  EXPECT_TRUE(job.has_shards_expire_time());
  EXPECT_LE(job.progress().average_bits(), 4);
  const auto frontier = Frontier(job.name());
  ASSERT_TRUE(frontier.ok()) << frontier.status();
  ASSERT_GE(frontier->points_size(), 5);
  EXPECT_NEAR(frontier->points(0).average_bits(), frontier->least_bits(), 1e-9);
  int made = 0;
  for (int i = 0; i < frontier->points_size(); ++i) {
    const v1::Frontier::Point& point = frontier->points(i);
    int linears = 0;
    for (const auto& [bits, count] : point.linears_by_bits()) linears += count;
    EXPECT_EQ(linears, 21);
    if (i > 0) {
      EXPECT_GT(point.average_bits(), frontier->points(i - 1).average_bits());
      EXPECT_LT(point.predicted_loss_increase(), frontier->points(i - 1).predicted_loss_increase());
    }
    if (point.job().empty()) {
      EXPECT_FALSE(point.has_measured_loss_increase());
      continue;
    }
    ++made;
    EXPECT_EQ(point.job(), job.name());
    EXPECT_NEAR(point.average_bits(), job.progress().average_bits(), 1e-9);
    EXPECT_NEAR(point.measured_loss_increase(), std::log(30.0 / 29.0), 1e-12);
  }
  EXPECT_EQ(made, 1);
  EXPECT_LE(Frontier(job.name(), 2)->points_size(), 3);
  EXPECT_TRUE(absl::IsInvalidArgument(Frontier(job.name(), -1).status()));
  EXPECT_TRUE(absl::IsNotFound(Frontier("jobs/99").status()));

  const json report = Report("mixed");
  ASSERT_EQ(report["decisions"].size(), 1u);
  EXPECT_EQ(report["decisions"][0]["decision"], "widths");
  EXPECT_EQ(report["decisions"][0]["linears"].size(), 21u);
}

TEST_F(CoordinatorRounds, APointIsTheArtifactThatAJobOfItsOwnMakes) {
  const v1::Job source = MakeMixed();
  const auto created = Create(PointSpec(source.name(), "point", 5));
  ASSERT_TRUE(created.ok()) << created.status();
  FakeWorker inference(channel_, "i1", v1::Worker::INFERENCE);
  ASSERT_TRUE(inference.Register().ok());
  ASSERT_TRUE(inference.WorkUntilIdle(absl::Seconds(1)).ok());
  const auto point = WaitForEnd(created->name());
  ASSERT_TRUE(point.ok()) << point.status();
  ASSERT_EQ(point->state(), v1::Job::SUCCEEDED) << point->message();
  EXPECT_EQ(point->validation().state(), v1::Validation::DONE) << "on the source's text";
  EXPECT_GT(point->progress().average_bits(), source.progress().average_bits());
  EXPECT_EQ(Report("point")["source_job"], source.name());

  const auto direct = Create(MixedSpec("direct", 5));
  ASSERT_TRUE(direct.ok()) << direct.status();
  Work();
  EXPECT_EQ(WaitForEnd(direct->name())->artifact_digest(), point->artifact_digest());

  // Both points are measured now, and the source's shards are still there.
  const auto frontier = Frontier(source.name());
  ASSERT_TRUE(frontier.ok()) << frontier.status();
  int made = 0;
  for (const v1::Frontier::Point& each : frontier->points()) made += each.job().empty() ? 0 : 1;
  EXPECT_EQ(made, 2);
  // A restart keeps them.
  StopServer();
  StartServer();
  EXPECT_TRUE(Frontier(source.name()).ok());
  EXPECT_TRUE(Create(PointSpec(source.name(), "after", 3)).ok());
}

TEST_F(CoordinatorRounds, PointsThatCannotBe) {
  const auto refused = [&](const v1::JobSpec& spec, const std::string& what) {
    const absl::Status status = Create(spec).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    return status;
  };
  EXPECT_TRUE(absl::IsNotFound(refused(PointSpec("jobs/7", "point", 4), "jobs/7")));
  EXPECT_TRUE(absl::IsInvalidArgument(refused(PointSpec("seven", "point", 4), "seven")));
  const auto plain = Create(Spec("plain"));
  ASSERT_TRUE(plain.ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition(refused(PointSpec(plain->name(), "p", 4), "no mixed widths")));
  const auto open = Create(MixedSpec("open", 4));
  ASSERT_TRUE(open.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(refused(PointSpec(open->name(), "p", 4), "not all")));
  Work();
  ASSERT_EQ(WaitForEnd(open->name())->state(), v1::Job::SUCCEEDED);
  EXPECT_TRUE(absl::IsInvalidArgument(refused(PointSpec(open->name(), "p", 2), "2")));
  EXPECT_TRUE(absl::IsAlreadyExists(refused(PointSpec(open->name(), "open", 4), "output exists")));
  v1::JobSpec spare = PointSpec(open->name(), "p", 4);
  spare.set_model("tiny-llama");
  EXPECT_TRUE(absl::IsInvalidArgument(refused(spare, "model")));
  v1::JobSpec outside = PointSpec(open->name(), "/elsewhere", 4);
  EXPECT_TRUE(absl::IsPermissionDenied(refused(outside, "--output-root")));
}

TEST_F(CoordinatorRounds, ShardsGoAfterTheirTime) {
  StopServer();
  retention_ = absl::Milliseconds(1);
  StartServer();
  // The artifact lies in the data folder, beside the shards.
  const v1::Job job = MakeMixed("");
  const std::string shards = temporary_ / "data/jobs/1/shards";
  for (int i = 0; i < 1000 && PathExists(shards); ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE(PathExists(shards));
  EXPECT_TRUE(absl::IsFailedPrecondition(Frontier(job.name()).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Create(PointSpec(job.name(), "point", 5)).status()));
  EXPECT_EQ(*FolderDigest(job.artifact_path()), job.artifact_digest()) << "the artifact stays";
}

TEST_F(CoordinatorRounds, DecisionsAndPathChecksAreReported) {
  v1::JobSpec spec = Spec("requant");
  spec.mutable_recipe()->set_outliers("pqi");
  const auto created = Create(spec);
  ASSERT_TRUE(created.ok()) << created.status();
  Work();
  const auto job = WaitForEnd(created->name());
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->state(), v1::Job::SUCCEEDED) << job->message();
  // The fake worker's scores add up to what it says the loss is: 21 linears of 0.01.
  ASSERT_EQ(job->progress().path_checks_size(), 3);
  for (const v1::PathCheck& check : job->progress().path_checks()) {
    EXPECT_NEAR(check.integral(), 0.21, 1e-9);
    EXPECT_NEAR(check.measured(), 0.21, 1e-9);
  }
  const json report = Report("requant");
  ASSERT_EQ(report["decisions"].size(), 3u);
  EXPECT_EQ(report["decisions"][0]["decision"], "shares");
  EXPECT_EQ(report["decisions"][1]["decision"], "threshold");
  EXPECT_EQ(report["path_checks"][0]["purpose"], "requantize");
  EXPECT_FALSE(PathExists(temporary_ / "data/jobs/1/shards")) << "nothing is kept of it";
}

}  // namespace
}  // namespace gradq
