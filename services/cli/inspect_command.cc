#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/format/inspect.h"
#include "services/cli/commands.h"
#include "services/cli/report.h"

namespace gradq {
namespace {

struct InspectFlags {
  std::string folder;
  bool json = false;
  bool verify = false;
};

std::string NumberOrDash(const std::optional<double>& number) {
  return number.has_value() ? absl::StrFormat("%.4g", *number) : "-";
}

absl::Status RunInspect(const InspectFlags& flags) {
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> folder, OpenLocalFolder(flags.folder));
  if (flags.verify) GRADQ_RETURN_IF_ERROR(VerifyArtifactFiles(*folder));
  GRADQ_ASSIGN_OR_RETURN(const Inspection inspection, InspectArtifact(std::move(folder)));
  if (flags.json) {
    std::printf("%s\n", InspectionJson(inspection).c_str());
    return absl::OkStatus();
  }
  std::printf("%-40s %-10s %4s  %8s  %12s  %12s  %12s\n", "linear", "method", "bits", "in fp16",
              "objective", "from", "loss +nats");
  for (const InspectedLinear& linear : inspection.linears) {
    const std::string apart = linear.outlier_fraction > 0
                                  ? absl::StrFormat("%.3f %%", 100 * linear.outlier_fraction)
                                  : "-";
    std::printf("%-40s %-10s %4d  %8s  %12s  %12s  %12s\n", linear.name.c_str(),
                linear.method.c_str(), linear.bits, apart.c_str(),
                NumberOrDash(linear.objective_final).c_str(),
                NumberOrDash(linear.objective_initial).c_str(),
                NumberOrDash(linear.predicted_loss_increase).c_str());
  }
  std::printf("%zu linears, %.3f bits per weight, %s, predicted loss increase %s nats per token\n",
              inspection.linears.size(), inspection.average_bits,
              FormatBytes(static_cast<double>(inspection.bytes)).c_str(),
              NumberOrDash(inspection.predicted_loss_increase).c_str());
  if (flags.verify) std::printf("all files match gradq.json\n");
  return absl::OkStatus();
}

}  // namespace

void AddInspectCommand(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command =
      app.add_subcommand("inspect", "Linears, bits and objectives of a quantized model");
  command->footer(
      "Examples:\n  gradq inspect llama-3bit\n  gradq inspect llama-3bit --verify --json");
  command->add_option("folder", flags->folder, "Quantized folder")->required()->type_name("DIR");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->add_flag("--verify", flags->verify, "Also compare every file with its recorded SHA-256");
  command->callback([flags, &chosen] { chosen = [flags] { return RunInspect(*flags); }; });
}

}  // namespace gradq
