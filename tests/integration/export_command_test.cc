// `gradq export` and `gradq frontier` with the real binaries: folders in other formats, another
// point of a kept job.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "tests/integration/quantize_run.h"

namespace gradq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

const std::string kModel = GRADQ_FIXTURES "/tiny-llama";

class Export : public testing::Test {
 protected:
  Export() : folder_(StrCat(testing::TempDir(), "/gradq-export-", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Export() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return StrCat(folder_, "/", name); }

  // The JSON that a command prints.
  static json Run(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const GradqResult result = RunGradq(arguments);
    EXPECT_EQ(result.code, 0) << result.output;
    const size_t start = result.output.find('{');
    return json::parse(start == std::string::npos ? "null" : result.output.substr(start), nullptr,
                       false);
  }
  static void ExpectRefused(const std::vector<std::string>& arguments,
                            const std::vector<std::string>& words) {
    const GradqResult result = RunGradq(arguments);
    EXPECT_EQ(result.code, 1) << result.output;
    for (const std::string& word : words) EXPECT_THAT(result.output, HasSubstr(word));
  }
  json Quantize(const std::string& output, const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {"quantize",
                                          "--model",
                                          kModel,
                                          "--calibration",
                                          kModel + "/calibration.txt",
                                          "--output",
                                          Path(output),
                                          "--sequences",
                                          "8",
                                          "--length",
                                          "64",
                                          "--groups",
                                          "1",
                                          "--workers",
                                          "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }
  static double Perplexity(const std::string& folder) {
    return Run({"eval", "--model", folder, "--text", kModel + "/validation.txt", "--length", "64",
                "--max-sequences", "16"})
        .value("perplexity", std::nan(""));
  }
  static json Config(const std::string& folder) {
    return json::parse(ReadFile(folder + "/config.json").value_or("null"));
  }

  std::string folder_;
};

TEST_F(Export, CodebooksAsDenseWeights) {
  Quantize("native", {"--bits", "3"});
  // The bundled models have 176 and 688 columns: their kernel takes multiples of 32.
  ExpectRefused({"export", Path("native"), "--format", "any-precision", "--output", Path("x")},
                {"multiple of 32", "176", "dense-bf16"});
  Run({"export", Path("native"), "--format", "dense-bf16", "--output", Path("dense")});
  EXPECT_FALSE(Config(Path("dense")).contains("quantization_config"));
  // Rounded to bf16 and no further.
  EXPECT_NEAR(Perplexity(Path("dense")) / Perplexity(Path("native")), 1, 0.005);

  ExpectRefused({"export", Path("native"), "--format", "dense-bf16", "--output", Path("dense")},
                {"--force", "dense"});
  Run({"export", Path("native"), "--format", "dense-bf16", "--output", Path("dense"), "--force"});
  ExpectRefused({"export", Path("native"), "--output", Path("same")}, {"already"});
}

TEST_F(Export, CodebooksOnAGrid) {
  const json native = Quantize("native", {"--bits", "2"});
  ExpectRefused({"export", Path("native"), "--format", "compressed-tensors", "--output", Path("x")},
                {"codebooks", "--model", "--calibration"});
  std::ofstream(Path("other.txt")) << "another text";
  ExpectRefused({"export", Path("native"), "--format", "compressed-tensors", "--output", Path("x"),
                 "--model", kModel, "--calibration", Path("other.txt")},
                {"other.txt", "SHA-256"});
  Run({"export", Path("native"), "--format", "compressed-tensors", "--output", Path("grid"),
       "--model", kModel, "--calibration", kModel + "/calibration.txt"});
  EXPECT_FALSE(fs::exists(Path("x")));
  const json config = Config(Path("grid"))["quantization_config"];
  EXPECT_EQ(config["quant_method"], "compressed-tensors");
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
}

TEST_F(Export, AffineCodesAsTheyAre) {
  Quantize("native", {"--method", "rtn", "--bits", "4", "--group-size", "16"});
  Run({"export", Path("native"), "--format", "compressed-tensors", "--output", Path("ct")});
  EXPECT_EQ(Config(Path("ct"))["quantization_config"]["format"], "pack-quantized");
  ExpectRefused({"export", Path("native"), "--format", "any-precision", "--output", Path("x")},
                {"affine", "can: compressed-tensors, dense-bf16"});
  Quantize("outliers",
           {"--method", "rtn", "--bits", "4", "--group-size", "16", "--outliers", "gwq"});
  ExpectRefused(
      {"export", Path("outliers"), "--format", "compressed-tensors", "--output", Path("x")},
      {"outliers", "dense-bf16"});
}

TEST_F(Export, AnotherPointOfAKeptJob) {
  const json made =
      Quantize("mixed", {"--average-bits", "4.5", "--keep-data", Path("kept"), "--evaluation",
                         kModel + "/validation.txt", "--evaluation-sequences", "8"});
  EXPECT_LE(made.value("average_bits", 9.0), 4.5);
  const json point = Run({"export", "jobs/1", "--data-dir", Path("kept"), "--average-bits", "3.4",
                          "--output", Path("point")});
  EXPECT_LE(point.value("average_bits", 9.0), 3.4);
  EXPECT_GT(point["evaluation"].value("perplexity", 0.0), 1);
  const json frontier = Run({"frontier", "jobs/1", "--data-dir", Path("kept"), "--points", "9"});
  int measured = 0;
  for (const json& each : frontier["points"])
    measured += each["measured_loss_increase"].is_null() ? 0 : 1;
  EXPECT_EQ(measured, 2);
  // The job's own artifact once more, and a point straight into another format.
  Run({"export", "jobs/1", "--data-dir", Path("kept"), "--output", Path("again")});
  EXPECT_EQ(ArtifactListing(Path("again")), ArtifactListing(Path("mixed")));
  Run({"export", "jobs/1", "--data-dir", Path("kept"), "--average-bits", "6", "--format",
       "dense-bf16", "--output", Path("dense")});
  EXPECT_TRUE(fs::exists(Path("dense/model.safetensors")));
  ExpectRefused({"export", "jobs/1", "--data-dir", Path("kept"), "--average-bits", "1", "--output",
                 Path("x")},
                {"out of reach"});
  // Nothing is left beside what was asked for.
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder_))
    left.push_back(entry.path().filename().string());
  EXPECT_THAT(left, testing::UnorderedElementsAre("mixed", "kept", "point", "again", "dense"));
}

}  // namespace
}  // namespace gradq
