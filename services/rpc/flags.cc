#include "services/rpc/flags.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "lib/base/logging.h"
#include "lib/base/strings.h"
#include "services/rpc/address.h"

namespace gradq {
namespace {

std::string Scalar(const std::string& key, const YAML::Node& node) {
  if (!node.IsScalar()) {
    throw CLI::ConversionError(StrCat("value of a configuration key is not a scalar: ", key));
  }
  return node.Scalar();
}

class YamlConfig : public CLI::Config {
 public:
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return ""; }

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    YAML::Node root;
    try {
      root = YAML::Load(input);
    } catch (const YAML::Exception& error) {
      throw CLI::FileError(StrCat("configuration is not YAML: ", error.what()));
    }
    std::vector<CLI::ConfigItem> items;
    if (root.IsNull()) return items;
    if (!root.IsMap()) throw CLI::FileError("configuration is not a map of flags");
    for (const auto& entry : root) {
      CLI::ConfigItem item;
      item.name = entry.first.Scalar();
      if (entry.second.IsSequence()) {
        for (const auto& value : entry.second) item.inputs.push_back(Scalar(item.name, value));
      } else if (!entry.second.IsNull()) {
        item.inputs.push_back(Scalar(item.name, entry.second));
      } else {
        continue;  // "key:" alone leaves the default
      }
      items.push_back(std::move(item));
    }
    return items;
  }
};

// The parent may be gone before prctl: then the signal never comes.
void FollowParent(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  std::thread([parent] {
    while (getppid() == parent) std::this_thread::sleep_for(std::chrono::milliseconds(250));
    kill(getpid(), SIGTERM);
    std::this_thread::sleep_for(std::chrono::seconds(10));
    kill(getpid(), SIGKILL);
  }).detach();
}

}  // namespace

CLI::Option* AddDurationFlag(CLI::App& app, const std::string& name, absl::Duration* value,
                             const std::string& help) {
  const auto parse = [value](const std::string& text) {
    absl::Duration parsed;
    if (!absl::ParseDuration(text, &parsed) || parsed < absl::ZeroDuration()) return false;
    *value = parsed;
    return true;
  };
  return app
      .add_option_function<std::string>(
          name,
          [parse, name](const std::string& text) {
            if (!parse(text)) {
              throw CLI::ValidationError(name, StrCat("not a duration (30s, 600ms): ", text));
            }
          },
          help)
      ->default_str(absl::FormatDuration(*value))
      ->type_name("DURATION");
}

void ReadYamlConfig(CLI::App& app) {
  app.set_config("--config", "", "YAML file with flag names as keys; flags win over it")
      ->type_name("FILE");
  app.config_formatter(std::make_shared<YamlConfig>());
  app.allow_config_extras(CLI::config_extras_mode::error);
}

void AddServerFlags(CLI::App& app, ServerFlags* flags) {
  app.option_defaults()->always_capture_default();
  app.add_option("--listen", flags->listen, "Address to listen on; port 0: one that is free")
      ->type_name("HOST:PORT")
      ->check([](const std::string& text) {
        const auto address = ParseHostPort(text);
        return address.ok() ? std::string() : std::string(address.status().message());
      });
  app.add_flag("--insecure", flags->insecure, "Allow plaintext beyond loopback");
  app.add_option("--log-level", flags->log_level, "Least level written to stderr")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}));
  app.add_option("--threads", flags->threads, "Compute threads; 0: all cores")
      ->check(CLI::Range(0, 4096));
  app.add_option("--port-file", flags->port_file, "File that gets HOST:PORT once it listens")
      ->type_name("FILE");
  app.add_flag("--check-config", flags->check_config, "Only check flags and configuration")
      ->configurable(false);
  app.add_flag("--exit-with-parent", flags->exit_with_parent,
               "Drain and end when the starting process ends")
      ->configurable(false);
  ReadYamlConfig(app);
}

std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv,
                                    const std::string& component, ServerFlags* flags) {
  const pid_t parent = getppid();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (flags->check_config) {
    std::cout << "configuration is valid\n";
    return 0;
  }
  if (flags->threads == 0) {
    flags->threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  LogLevel level = LogLevel::kInfo;
  ParseLogLevel(flags->log_level, &level);
  InitLogging(component, level);
  if (flags->exit_with_parent) FollowParent(parent);
  return std::nullopt;
}

}  // namespace gradq
