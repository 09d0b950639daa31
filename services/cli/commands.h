#pragma once

// The subcommands. Each Add… function declares flags and help and stores what to run; main.cc runs
// the chosen one. A command's status becomes the exit code: OK 0, INVALID_ARGUMENT found before
// anything ran is usage 2, everything else 1.

#include <functional>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace gradq {

using Command = std::function<absl::Status()>;

void AddQuantizeCommand(CLI::App& app, Command& chosen);
void AddPlanCommand(CLI::App& app, Command& chosen);
void AddSubmitCommand(CLI::App& app, Command& chosen);
void AddJobsCommands(CLI::App& app, Command& chosen);
void AddDownloadCommand(CLI::App& app, Command& chosen);
void AddExportCommand(CLI::App& app, Command& chosen);
void AddFrontierCommand(CLI::App& app, Command& chosen);
void AddInferenceCommands(CLI::App& app, Command& chosen);  // eval, compare, generate
void AddInspectCommand(CLI::App& app, Command& chosen);
void AddMethodsCommand(CLI::App& app, Command& chosen);

}  // namespace gradq
