// The CLI without its processes: flags and job files into specs, jobs into text and JSON.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "services/cli/job_flags.h"
#include "services/cli/progress.h"
#include "services/cli/report.h"
#include "tests/base/temporary_folder.h"

namespace gradq {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// The spec of `gradq x` with these flags behind the required ones; an error's exit code otherwise.
absl::StatusOr<v1::JobSpec> Parse(std::vector<std::string> arguments) {
  CLI::App app;
  JobFlags flags;
  AddJobFlags(app, flags, /*output_required=*/false);
  arguments.insert(arguments.begin(), {"--model", "m", "--calibration", "t"});
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  return ToSpec(flags);
}

TEST(JobFlags, RecipeOfOutliersAndWidths) {
  const auto spec =
      Parse({"--method", "squeezellm", "--outliers", "pqi", "--outlier-fraction", "0.01", "--nodes",
             "5", "--outlier-detach-fraction", "0", "--forward-only"});
  ASSERT_TRUE(spec.ok()) << spec.status();
  const v1::Recipe& recipe = spec->recipe();
  EXPECT_EQ(recipe.outliers(), "pqi");
  EXPECT_EQ(recipe.outlier_options().at("fraction"), "0.01");
  EXPECT_EQ(recipe.outlier_options().at("nodes"), "5");
  EXPECT_EQ(recipe.outlier_options().at("detach_fraction"), "0");
  EXPECT_EQ(recipe.outlier_options().size(), 3u);
  EXPECT_EQ(recipe.bits(), 3);
  EXPECT_FALSE(recipe.has_average_bits());
  EXPECT_TRUE(spec->forward_only());

  const auto mixed = Parse(
      {"--average-bits", "2.8", "--free-widths", "--objective", "coupled", "--shrinkage", "0.7"});
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(mixed->recipe().average_bits(), 2.8);
  EXPECT_TRUE(mixed->recipe().free_widths());
  EXPECT_EQ(mixed->recipe().bits(), 0) << "ignored by such a job";
  EXPECT_EQ(mixed->recipe().objective(), "coupled");
  EXPECT_EQ(mixed->recipe().options().at("shrinkage"), "0.7");

  EXPECT_FALSE(Parse({"--average-bits", "2.8", "--bits", "3"}).ok());
  EXPECT_FALSE(Parse({"--average-bits", "0"}).ok());
  EXPECT_FALSE(Parse({"--outlier-nothing", "1"}).ok());
}

TEST(JobFlags, HelpNamesTheRowsOfAnOption) {
  CLI::App app;
  JobFlags flags;
  AddJobFlags(app, flags, false);
  const std::string help = app.help();
  EXPECT_THAT(help, HasSubstr("(gwq: default 0.01; squeezellm, pqi: default 0.0045)"));
  EXPECT_THAT(help, HasSubstr("--outlier-sensitive-fraction"));
  EXPECT_THAT(help, HasSubstr("Outlier options"));
  EXPECT_THAT(help, HasSubstr("(rtn, gptq: default 128)"));
  // Two rows that mean different things by one name are told apart.
  EXPECT_THAT(help, HasSubstr("gptvq1d: sweeps over the columns"));
  EXPECT_THAT(help, HasSubstr("lnq: codebook updates"));
}

TEST(JobFlags, JobFiles) {
  const TemporaryFolder folder;
  const std::string path = folder / "job.yaml";
  std::ofstream(path) << "model: m\naverage-bits: 2.8\nfree-widths: true\nforward-only: false\n"
                         "outliers: gwq\noutlier-fraction: 0.01\n";
  const auto arguments = ReadJobFile(path);
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_THAT(*arguments, ElementsAre("--model", "m", "--average-bits", "2.8", "--free-widths",
                                      "--outliers", "gwq", "--outlier-fraction", "0.01"));
  EXPECT_TRUE(Parse(*arguments).ok());
  std::ofstream(path) << "free-widths: maybe\n";
  EXPECT_THAT(std::string(ReadJobFile(path).status().message()), HasSubstr("maybe"));
  std::ofstream(path) << "outliers: [gwq]\n";
  EXPECT_FALSE(ReadJobFile(path).ok());
}

v1::Job FinishedJob() {
  v1::Job job;
  job.set_name("jobs/1");
  job.set_state(v1::Job::SUCCEEDED);
  job.set_artifact_path("/out");
  job.mutable_create_time()->set_seconds(100);
  job.mutable_end_time()->set_seconds(112);
  job.mutable_progress()->set_average_bits(3.25);
  job.mutable_progress()->set_shrinkage(0.7);
  v1::PathCheck* check = job.mutable_progress()->add_path_checks();
  check->set_round(1);
  check->set_purpose("requantize");
  check->set_integral(0.1690);
  check->set_measured(0.1691);
  return job;
}

TEST(Report, QuantizeJsonIsAContract) {
  const json result = json::parse(QuantizeJson(FinishedJob(), 0.0045));
  std::vector<std::string> keys;
  for (const auto& [key, value] : result.items()) keys.push_back(key);
  EXPECT_THAT(keys, testing::UnorderedElementsAre("job", "output", "seconds", "phases",
                                                  "predicted_loss_increase", "average_bits",
                                                  "bytes", "evaluation", "path_checks", "shrinkage",
                                                  "outlier_fraction"));
  EXPECT_EQ(result["seconds"], 12);
  EXPECT_EQ(result["predicted_loss_increase"], nullptr);
  EXPECT_EQ(result["evaluation"], nullptr);
  EXPECT_EQ(result["path_checks"][0]["integral"], 0.169);
  EXPECT_EQ(result["path_checks"][0]["purpose"], "requantize");
  EXPECT_EQ(result["shrinkage"], 0.7);
  EXPECT_EQ(result["outlier_fraction"], 0.0045);
  v1::Job plain = FinishedJob();
  plain.mutable_progress()->clear_shrinkage();
  EXPECT_EQ(json::parse(QuantizeJson(plain, 0))["shrinkage"], nullptr);
}

TEST(Report, TablesForPeople) {
  const std::string table = ResultTable(FinishedJob(), 0.0045);
  EXPECT_THAT(table, HasSubstr("integral 0.1690 nats, measured 0.1691 (0.06 %)"));
  EXPECT_THAT(table, HasSubstr("round 2, requantize"));
  EXPECT_THAT(table, HasSubstr("0.450 % of the weights"));
  EXPECT_THAT(table, HasSubstr("shrinkage 0.7"));
  EXPECT_THAT(ResultTable(FinishedJob(), 0), Not(HasSubstr("outliers")));

  v1::Frontier frontier;
  frontier.set_least_bits(2.5);
  frontier.set_most_bits(4.5);
  v1::Frontier::Point* point = frontier.add_points();
  point->set_average_bits(2.75);
  point->set_predicted_loss_increase(0.125);
  point->set_measured_loss_increase(0.25);
  point->set_job("jobs/1");
  (*point->mutable_linears_by_bits())[2] = 40;
  (*point->mutable_linears_by_bits())[3] = 2;
  frontier.add_points()->set_average_bits(3);
  EXPECT_THAT(FrontierTable("jobs/1", frontier), HasSubstr("<- this job"));
  EXPECT_THAT(FrontierTable("jobs/2", frontier), HasSubstr("<- jobs/1"));
  const json object = json::parse(FrontierJson("jobs/1", frontier));
  EXPECT_EQ(object["points"][0]["linears"]["2"], 40);
  EXPECT_EQ(object["points"][0]["measured_loss_increase"], 0.25);
  EXPECT_EQ(object["points"][1]["measured_loss_increase"], nullptr);
  EXPECT_EQ(object["points"][1]["job"], nullptr);
}

TEST(Progress, RoundsAreToldApart) {
  v1::Job job;
  job.set_state(v1::Job::RUNNING);
  job.mutable_plan()->add_linears("a");
  job.mutable_plan()->add_linears("b");
  for (const char* purpose : {"quantize", "requantize"})
    job.mutable_plan()->add_rounds()->set_purpose(purpose);
  v1::JobProgress& progress = *job.mutable_progress();
  progress.set_round(1);
  progress.set_purpose("requantize");
  progress.set_chunks_total(8);
  progress.set_chunks_done(4);
  progress.set_linears_total(4);
  progress.set_linears_done(2);
  EXPECT_EQ(PhaseName(job), "round 2/2, requantize");
  EXPECT_NEAR(FractionDone(job), 0.5, 1e-12);
  job.mutable_plan()->mutable_rounds()->RemoveLast();
  progress.set_round(0);
  EXPECT_THAT(PhaseName(job), Not(HasSubstr("round"))) << "a single round needs no number";
}

}  // namespace
}  // namespace gradq
