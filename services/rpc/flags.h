#pragma once

// The command-line flags that every server binary shares, YAML configuration files with the flags'
// names as keys, and how main() begins:
//
//   CLI::App app("gradq-worker ...");
//   ServerFlags flags;
//   AddServerFlags(app, &flags);
//   app.add_option("--coordinator", ...);
//   if (const std::optional<int> code = ParseCommandLine(app, argc, argv, "worker", &flags)) return
//   *code;
//
// Main thread only.

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace gradq {

struct ServerFlags {
  std::string listen = "127.0.0.1:0";
  bool insecure = false;
  std::string log_level = "info";
  int threads = 0;  // 0: all cores of the machine; resolved by ParseCommandLine to at least 1
  std::string port_file;
  bool check_config = false;
  bool exit_with_parent = false;
};

// Adds --listen, --insecure, --log-level, --threads, --port-file, --config FILE, --check-config and
// --exit-with-parent.
void AddServerFlags(CLI::App& app, ServerFlags* flags);

// A duration such as 30s, 600ms or 1m30s; not negative, "0" is allowed.
CLI::Option* AddDurationFlag(CLI::App& app, const std::string& name, absl::Duration* value,
                             const std::string& help);

// Makes --config read YAML: a map from flag names (without dashes) to scalars or lists of scalars;
// an unknown key is an error. The command line wins over the file.
void ReadYamlConfig(CLI::App& app);

// Parses, and starts logging as `component` at --log-level. The exit code when the process must end
// now: 0 for --help and a --check-config that passed, 2 for wrong use. With --exit-with-parent,
// this process gets SIGTERM when the thread that started it ends, and kills itself 10 s later.
std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv,
                                    const std::string& component, ServerFlags* flags);

}  // namespace gradq
