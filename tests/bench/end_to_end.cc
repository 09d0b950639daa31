// gradq quantize of the bundled model beside one plain fp32 pass over the same tokens: 3 bits,
// 64 x 512 tokens, 4 groups, 3 iterations x 4 cycles, two workers sharing the cores. Prints
// seconds and ratios of the medians; the two alternate, so that a noisy machine hits both.
//
//   build/release/bin/end_to_end [ROUNDS]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/transformer/numerics.h"
#include "services/cli/child_process.h"
#include "tests/bench/plain_pass.h"

namespace gradq {
namespace {

constexpr int64_t kSequences = 64;
constexpr int64_t kLength = 512;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct JobSeconds {
  double whole = 0;    // from submit to the artifact's rename
  double solve = 0;    // wall seconds in which at least one linear was being solved
  double command = 0;  // of the gradq process, starts and stops of all servers included
};

absl::StatusOr<JobSeconds> RunJob(const std::string& model) {
  GRADQ_ASSIGN_OR_RETURN(const WorkFolder work, WorkFolder::Create(""));
  const absl::Time start = absl::Now();
  const std::string log = work.path() + "/log";
  GRADQ_ASSIGN_OR_RETURN(
      ChildProcess job,
      ChildProcess::Start(
          "gradq",
          {"quantize", "--model", model, "--calibration", model + "/calibration.txt", "--output",
           work.path() + "/out", "--bits", "3", "--groups", "4", "--sequences", StrCat(kSequences),
           "--length", StrCat(kLength), "--workers", "2", "--json"},
          log));
  while (job.Running()) absl::SleepFor(absl::Milliseconds(5));
  JobSeconds seconds;
  seconds.command = absl::ToDoubleSeconds(absl::Now() - start);
  if (job.HowItEnded() != "exit code 0") return absl::UnknownError(job.LogTail());
  GRADQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(log));
  const auto result = nlohmann::json::parse(text.substr(text.find("{\"job\"")));
  seconds.whole = result.at("seconds");
  seconds.solve = result.at("phases").at("solve");
  return seconds;
}

absl::Status Run(int rounds) {
  const std::string model = GRADQ_FIXTURES "/docs-llama-6m";
  GRADQ_ASSIGN_OR_RETURN(const std::string json, ReadFile(model + "/tokenizer.json"));
  GRADQ_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(json));
  GRADQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(model + "/calibration.txt"));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->Encode(text));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                         CutWindows(ids, kLength, kSequences, tokenizer->vocab_size()));
  std::vector<double> pass, whole, solve, command;
  for (int round = 0; round < rounds; ++round) {
    GRADQ_ASSIGN_OR_RETURN(const double seconds, PlainPassSeconds(model, tokens, kLength, 4));
    GRADQ_ASSIGN_OR_RETURN(const JobSeconds job, RunJob(model));
    pass.push_back(seconds);
    whole.push_back(job.whole);
    solve.push_back(job.solve);
    command.push_back(job.command);
    std::printf("round %d: plain pass %.2f s, job %.2f s, solve %.2f s, command %.2f s\n",
                round + 1, pass.back(), whole.back(), solve.back(), command.back());
  }
  std::printf(
      "medians: plain pass %.2f s; job %.2f s = %.2f x; solve %.2f s = %.2f x; command %.2f x\n",
      Median(pass), Median(whole), Median(whole) / Median(pass), Median(solve),
      Median(solve) / Median(pass), Median(command) / Median(pass));
  return absl::OkStatus();
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const absl::StatusOr<std::string> numerics = gradq::SetUpNumerics(cores, "cpu");
  GRADQ_CHECK(numerics.ok());
  std::printf("%d threads, %s\n", cores, numerics->c_str());
  const absl::Status status = gradq::Run(argc > 1 ? std::atoi(argv[1]) : 3);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
