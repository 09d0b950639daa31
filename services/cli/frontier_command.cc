#include <cstdio>
#include <memory>
#include <string>

#include "lib/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/remote.h"
#include "services/cli/report.h"

namespace gradq {
namespace {

struct FrontierFlags {
  Remote remote;
  std::string job;
  int points = 0;
  bool json = false;
};

absl::Status RunFrontier(const FrontierFlags& flags) {
  GRADQ_ASSIGN_OR_RETURN(CoordinatorLink coordinator,
                         OpenCoordinator(flags.remote, /*inference=*/false));
  GRADQ_ASSIGN_OR_RETURN(const v1::Frontier frontier,
                         coordinator.client.Frontier(flags.job, flags.points));
  if (flags.json) {
    std::printf("%s\n", FrontierJson(flags.job, frontier).c_str());
  } else {
    std::printf("%s", FrontierTable(flags.job, frontier).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddFrontierCommand(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<FrontierFlags>();
  CLI::App* command = app.add_subcommand(
      "frontier", "Bits against loss of a job with mixed widths (--average-bits)");
  command->footer(
      "Every point is the least predicted loss under its bits, in nats per token; measured where "
      "an "
      "artifact of the\n"
      "point was validated. `gradq export JOB --average-bits B` makes another point, without new "
      "gradients.\n"
      "Examples:\n"
      "  gradq frontier jobs/1 --coordinator localhost:7070\n"
      "  gradq frontier jobs/1 --data-dir kept --json");
  AddRemoteOrDataFlags(*command, flags->remote);
  command->add_option("job", flags->job, "Job name, jobs/ID")->required();
  command
      ->add_option("--points", flags->points, "Points at most, spread over the bits (default 33)")
      ->check(CLI::Range(2, 1000));
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([flags, &chosen] { chosen = [flags] { return RunFrontier(*flags); }; });
}

}  // namespace gradq
