#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"
#include "lib/catalog/export_formats.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/quantizers.h"
#include "services/cli/commands.h"
#include "services/cli/job_flags.h"

namespace gradq {
namespace {

void PrintOptions(std::span<const OptionSpec> options, std::string (*flag)(std::string_view)) {
  for (const OptionSpec& option : options) {
    const std::string range = option.type == OptionSpec::Type::kChoice
                                  ? std::string(option.choices)
                                  : absl::StrFormat("%.10g .. %.10g", option.min, option.max);
    std::printf("      %-30s %s (default %s; %s)\n", flag(option.name).c_str(),
                std::string(option.help).c_str(), std::string(option.default_value).c_str(),
                range.c_str());
  }
}

absl::Status RunMethods() {
  std::printf("Quantizers (--method)\n");
  for (const QuantizerRow& row : Quantizers()) {
    std::printf("  %-12s %s\n      %s; %d..%d bits\n", std::string(row.name).c_str(),
                std::string(row.summary).c_str(), std::string(row.paper).c_str(), row.min_bits,
                row.max_bits);
    PrintOptions(row.options, MethodFlag);
  }
  std::printf("Outlier policies (--outliers), each with any quantizer\n");
  for (const OutlierPolicyRow& row : OutlierPolicies()) {
    std::printf("  %-12s %s\n", std::string(row.name).c_str(), std::string(row.summary).c_str());
    if (!row.paper.empty()) std::printf("      %s\n", std::string(row.paper).c_str());
    PrintOptions(row.options, OutlierFlag);
  }
  std::printf("Export formats (gradq export --format)\n");
  for (const ExportFormatRow& row : ExportFormats()) {
    std::printf("  %-18s %s\n      %s\n", std::string(row.name).c_str(),
                std::string(row.summary).c_str(), std::string(row.files).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddMethodsCommand(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand(
      "methods", "Quantizers, outlier policies and export formats with their options");
  command->callback([&chosen] { chosen = RunMethods; });
}

}  // namespace gradq
