// What bad input gets from the command line: the exit code, a message that names file and value,
// nothing half-written, no process left behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "services/cli/child_process.h"
#include "tests/integration/quantize_run.h"

namespace gradq {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

using Result = GradqResult;

class Refusals : public testing::Test {
 protected:
  Refusals() : folder_(StrCat(testing::TempDir(), "/gradq-refusals-", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    fs::copy(GRADQ_FIXTURES "/tiny-llama", folder_ + "/model", fs::copy_options::recursive);
  }
  ~Refusals() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return StrCat(folder_, "/", name); }

  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
  }

  std::string Read(const std::string& name) const { return ReadFile(Path(name)).value(); }

  // `gradq quantize` of the copied model with `more` behind the usual flags.
  Result Quantize(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {"quantize",
                                          "--model",
                                          Path("model"),
                                          "--calibration",
                                          Path("model/calibration.txt"),
                                          "--output",
                                          Path("out"),
                                          "--sequences",
                                          "4",
                                          "--length",
                                          "64",
                                          "--groups",
                                          "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunGradq(arguments);
  }

  // The command fails with `code`, says `words`, and leaves no output.
  void ExpectRefused(const std::vector<std::string>& more, int code,
                     const std::vector<std::string>& words) const {
    const Result result = Quantize(more);
    EXPECT_EQ(result.code, code) << result.output;
    for (const std::string& word : words) EXPECT_THAT(result.output, HasSubstr(word));
    for (const auto& entry : fs::directory_iterator(folder_)) {
      EXPECT_FALSE(entry.path().filename().string().starts_with("out")) << entry.path();
    }
  }

  std::string folder_;
};

TEST_F(Refusals, UsageIsTwo) {
  EXPECT_EQ(RunGradq({}).code, 2);
  EXPECT_EQ(RunGradq({"quantise"}).code, 2);
  ExpectRefused({"--no-such-flag"}, 2, {"--no-such-flag"});
  ExpectRefused({"--bits", "three"}, 2, {"three"});
  EXPECT_EQ(RunGradq({"quantize", "--help"}).code, 0);
}

TEST_F(Refusals, ModelFolder) {
  ExpectRefused({"--model", Path("absent")}, 1, {"absent"});
  fs::remove(Path("model/config.json"));
  ExpectRefused({}, 1, {"config.json"});
  Write("model/config.json", "{\"model_type\": ");
  ExpectRefused({}, 1, {"config.json"});
  Write("model/config.json",
        "{\"model_type\": \"mamba\", \"architectures\": [\"MambaForCausalLM\"]}");
  ExpectRefused({}, 1, {"mamba", "llama", "qwen3"});
}

TEST_F(Refusals, Weights) {
  const std::string weights = Read("model/model.safetensors");
  Write("model/model.safetensors", weights.substr(0, weights.size() / 2));
  ExpectRefused({}, 1, {"model.safetensors"});
  std::string absurd = weights;
  absurd.replace(0, 8, 8, '\x7f');
  Write("model/model.safetensors", absurd);
  ExpectRefused({}, 1, {"model.safetensors"});
  // The last tensor of the file ends in NaN (bf16 0x7fc0).
  std::string not_finite = weights;
  not_finite.replace(not_finite.size() - 2, 2, "\xc0\x7f");
  Write("model/model.safetensors", not_finite);
  ExpectRefused({}, 1, {"model.", "nan"});
}

TEST_F(Refusals, Tokenizer) {
  Write("model/tokenizer.json", "{}");
  ExpectRefused({}, 1, {"tokenizer"});
  fs::remove(Path("model/tokenizer.json"));
  ExpectRefused({}, 1, {"tokenizer.json"});
}

TEST_F(Refusals, Texts) {
  ExpectRefused({"--calibration", Path("absent.txt")}, 1, {"absent.txt"});
  Write("empty.txt", "");
  ExpectRefused({"--calibration", Path("empty.txt")}, 1, {"text"});
  Write("short.txt", "Too short for a window.");
  ExpectRefused({"--calibration", Path("short.txt")}, 1, {"64 needed"});
  Write("latin1.txt", "caf\xe9 and more");
  ExpectRefused({"--calibration", Path("latin1.txt")}, 1, {"UTF-8"});
}

TEST_F(Refusals, Recipe) {
  ExpectRefused({"--bits", "9"}, 2, {"9"});
  ExpectRefused({"--bits", "0"}, 2, {"0"});
  ExpectRefused({"--groups", "0"}, 2, {"group"});
  ExpectRefused({"--groups", "33"}, 1, {"33", "32"});  // k_proj has 32 rows
  ExpectRefused({"--method", "lnqq"}, 1, {"lnqq", "lnq"});
  ExpectRefused({"--method", "rtn", "--iterations", "3"}, 1, {"iterations"});
  ExpectRefused({"--iterations", "0"}, 1, {"iterations", "0"});
  ExpectRefused({"--outliers", "gqw"}, 1, {"gqw"});
  ExpectRefused({"--stages", "4"}, 1, {"4", "3"});
}

TEST_F(Refusals, Outliers) {
  ExpectRefused({"--outliers", "squeezellm", "--outlier-fraction", "0.3"}, 1,
                {"fraction", "0..0.2", "0.3"});
  ExpectRefused({"--outlier-fraction", "0.01"}, 1, {"without an outlier policy", "fraction"});
  ExpectRefused({"--outliers", "gwq", "--nodes", "3"}, 1, {"gwq", "nodes"});
  ExpectRefused({"--outliers", "gwq", "--outlier-samples", "5"}, 1, {"5", "4"});
  ExpectRefused({"--outliers", "squeezellm", "--method", "rtn", "--forward-only"}, 1,
                {"forward-only", "squeezellm", "fisher_diagonal"});
  ExpectRefused({"--forward-only"}, 1, {"forward-only", "lnq", "guided"});
}

TEST_F(Refusals, MixedWidthsAndCoupling) {
  ExpectRefused({"--average-bits", "1.9"}, 1, {"1.9", "reaches"});
  ExpectRefused({"--average-bits", "9"}, 1, {"9", "reaches"});
  ExpectRefused({"--average-bits", "-1"}, 2, {"-1"});
  ExpectRefused({"--average-bits", "3", "--bits", "3"}, 2, {"--average-bits", "--bits"});
  ExpectRefused({"--objective", "coupled", "--sequences", "1"}, 1, {"hold one out", "1"});
  ExpectRefused({"--objective", "coupled", "--method", "rtn"}, 1, {"coupled", "rtn"});
}

TEST_F(Refusals, OutputIsKeptUnlessForced) {
  fs::create_directories(Path("out"));
  Write("out/precious", "data");
  const Result refused = Quantize({"--method", "rtn"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.output, HasSubstr("--force"));
  EXPECT_EQ(Read("out/precious"), "data");
  const Result forced = Quantize({"--method", "rtn", "--force"});
  EXPECT_EQ(forced.code, 0) << forced.output;
  EXPECT_FALSE(fs::exists(Path("out/precious")));
  EXPECT_TRUE(fs::exists(Path("out/gradq.json")));
}

TEST_F(Refusals, DiskFull) {
  const std::string disk = Path("disk");
  fs::create_directories(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "needs the right to mount";
  }
  const Result result = Quantize({"--method", "rtn", "--output", disk + "/out"});
  EXPECT_EQ(result.code, 1) << result.output;
  EXPECT_THAT(result.output, testing::AnyOf(HasSubstr("No space left"), HasSubstr("disk")));
  EXPECT_TRUE(fs::is_empty(disk));
  umount(disk.c_str());
}

TEST_F(Refusals, CoordinatorNotReachable) {
  const Result result = RunGradq({"jobs", "list", "--coordinator", "127.0.0.1:1"});
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.output, HasSubstr("127.0.0.1:1"));
  EXPECT_EQ(RunGradq({"jobs", "list", "--coordinator", "nonsense"}).code, 1);
  EXPECT_EQ(RunGradq({"jobs", "list", "--coordinator", "192.0.2.1:7070"}).code, 1);
}

TEST_F(Refusals, FrontierAndExport) {
  const auto refused = [&](std::vector<std::string> arguments, int code,
                           const std::vector<std::string>& words) {
    arguments.insert(arguments.end(), {"--output", Path("out")});
    const Result result = RunGradq(arguments);
    EXPECT_EQ(result.code, code) << result.output;
    for (const std::string& word : words) EXPECT_THAT(result.output, HasSubstr(word));
    EXPECT_FALSE(fs::exists(Path("out")));
  };
  refused({"export", Path("absent"), "--format", "dense-bf16"}, 1, {"absent"});
  refused({"export", Path("model"), "--format", "dense-bf16"}, 1, {"model"});
  refused({"export", Path("model"), "--format", "gguf"}, 1, {"gguf", "any-precision"});
  refused({"export", Path("model"), "--average-bits", "3"}, 1, {"jobs/ID"});
  refused({"export", "jobs/1", "--average-bits", "3"}, 1, {"--coordinator", "--data-dir"});
  refused({"export", "jobs/1", "--average-bits", "-3", "--data-dir", Path("model")}, 2, {"-3"});
  refused({"export", "jobs/1", "--average-bits", "3", "--data-dir", Path("model")}, 1,
          {"holds no jobs"});
  EXPECT_FALSE(fs::exists(Path("model/jobs.sqlite")));
  const Result frontier = RunGradq({"frontier", "jobs/1", "--coordinator", "127.0.0.1:1"});
  EXPECT_EQ(frontier.code, 1);
  EXPECT_THAT(frontier.output, HasSubstr("127.0.0.1:1"));
}

TEST_F(Refusals, InferenceCommands) {
  EXPECT_EQ(
      RunGradq({"eval", "--model", Path("absent"), "--text", Path("model/validation.txt")}).code,
      1);
  EXPECT_EQ(RunGradq({"eval", "--model", Path("model"), "--text", Path("absent")}).code, 1);
  EXPECT_EQ(RunGradq({"eval", "--model", Path("model"), "--text", Path("model/validation.txt"),
                      "--length", "1"})
                .code,
            2);
  const Result inspect = RunGradq({"inspect", Path("model")});
  EXPECT_EQ(inspect.code, 1);
  EXPECT_THAT(inspect.output, HasSubstr("model"));
}

// Ctrl-C in the middle of a job: no artifact, no process, no temporary folder.
TEST_F(Refusals, InterruptLeavesNothing) {
  QuantizeRun run =
      QuantizeRun::Start(Path("run"), {"--model", GRADQ_FIXTURES "/docs-llama-6m", "--calibration",
                                       GRADQ_FIXTURES "/docs-llama-6m/calibration.txt"});
  std::vector<int> servers;
  bool running = false;
  for (const absl::Time limit = absl::Now() + absl::Minutes(1); !running && absl::Now() < limit;) {
    for (const v1::Task& task : run.Tasks()) running = running || task.state() == v1::Task::RUNNING;
    absl::SleepFor(absl::Milliseconds(10));
  }
  ASSERT_TRUE(running) << run.Log();
  servers = run.ServerPids();
  EXPECT_EQ(servers.size(), 3u);
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait(absl::Seconds(20)), 1) << run.Log();
  EXPECT_THAT(run.Log(), HasSubstr("interrupted"));
  for (const int pid : servers) EXPECT_FALSE(fs::exists(StrCat("/proc/", pid)));
  EXPECT_FALSE(fs::exists(run.output()));
  EXPECT_TRUE(fs::is_empty(Path("run/work")));
}

}  // namespace
}  // namespace gradq
