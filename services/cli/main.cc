// gradq: the command line. Contract: exit code 0 done, 1 failed, 2 usage; results on stdout,
// everything else on stderr.

#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "lib/base/logging.h"
#include "services/cli/commands.h"
#include "services/cli/job_flags.h"
#include "services/rpc/signals.h"

namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

// `submit JOB.yaml ...` becomes `submit --flags of the file ...`, so that flags given beside the
// file win.
absl::StatusOr<std::vector<std::string>> ExpandJobFile(std::vector<std::string> arguments) {
  if (arguments.size() < 2 || arguments[0] != "submit" || arguments[1].starts_with("-"))
    return arguments;
  absl::StatusOr<std::vector<std::string>> from_file = gradq::ReadJobFile(arguments[1]);
  if (!from_file.ok()) return from_file.status();
  arguments.erase(arguments.begin() + 1);
  arguments.insert(arguments.begin() + 1, from_file->begin(), from_file->end());
  return arguments;
}

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "gradq: %s\n", std::string(status.message()).c_str());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  gradq::Signals::Block();
  gradq::InitLogging("gradq", gradq::LogLevel::kWarning);

  CLI::App app(
      "gradq quantizes large language models as a service: on this machine, or on a cluster.");
  app.name("gradq");
  app.require_subcommand(1);
  app.footer(
      "First result:\n"
      "  gradq quantize --model DIR --calibration text.txt --output OUT --bits 3 --evaluation "
      "valid.txt\n"
      "Each command explains itself: gradq quantize --help");
  app.set_version_flag("--version", "gradq " GRADQ_VERSION);
  gradq::Command chosen;
  gradq::AddQuantizeCommand(app, chosen);
  gradq::AddPlanCommand(app, chosen);
  gradq::AddSubmitCommand(app, chosen);
  gradq::AddJobsCommands(app, chosen);
  gradq::AddDownloadCommand(app, chosen);
  gradq::AddExportCommand(app, chosen);
  gradq::AddFrontierCommand(app, chosen);
  gradq::AddInferenceCommands(app, chosen);
  gradq::AddInspectCommand(app, chosen);
  gradq::AddMethodsCommand(app, chosen);

  absl::StatusOr<std::vector<std::string>> arguments = ExpandJobFile({argv + 1, argv + argc});
  if (!arguments.ok()) return Fail(arguments.status(), kExitUsage);
  // CLI11 takes them last first.
  std::vector<std::string> reversed(arguments->rbegin(), arguments->rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  const absl::Status status = chosen();
  return status.ok() ? 0 : Fail(status, kExitFailed);
}
