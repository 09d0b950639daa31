#include "lib/catalog/outlier_policies.h"

#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

constexpr OptionSpec Fraction(std::string_view standard) {
  return {.name = "fraction",
          .type = OptionSpec::Type::kDouble,
          .default_value = standard,
          .min = 0,
          .max = 0.2,
          .help = "share of the weights kept apart in fp16"};
}

constexpr OptionSpec kGwqOptions[] = {
    Fraction("0.01"),
    {.name = "score",
     .type = OptionSpec::Type::kChoice,
     .default_value = "gradient",
     .choices = "gradient|gradient_delta|fisher_delta|magnitude",
     .help = "what ranks the weights: |g|, |g d|, F d^2 (F = fisher_diagonal, of all windows) or "
             "|w|, with d the error of a preliminary solve"},
    {.name = "scope",
     .type = OptionSpec::Type::kChoice,
     .default_value = "linear",
     .choices = "linear|block|model",
     .help = "where the share holds: in each linear, each block or the whole model"},
    {.name = "samples",
     .type = OptionSpec::Type::kInt,
     .default_value = "1",
     .min = 1,
     .max = 1048576,
     .help = "calibration windows whose gradient is taken"},
    {.name = "sum",
     .type = OptionSpec::Type::kChoice,
     .default_value = "signed",
     .choices = "signed|absolute",
     .help = "gradients of several windows add up with their sign, or their absolute values do"},
};

constexpr OptionSpec kSqueezellmOptions[] = {
    Fraction("0.0045"),
    {.name = "sensitive_fraction",
     .type = OptionSpec::Type::kDouble,
     .default_value = "0.0005",
     .min = 0,
     .max = 0.2,
     .help = "share taken by sensitivity (fisher_diagonal) first; the rest of the fraction goes to "
             "the largest weights"},
};

constexpr OptionSpec kPqiOptions[] = {
    Fraction("0.0045"),
    {.name = "detach_fraction",
     .type = OptionSpec::Type::kDouble,
     .default_value = "0.0005",
     .min = 0,
     .max = 0.2,
     .help = "share of the model's weights detached last, those that raise the loss most on their "
             "way to their codewords; the rest of the fraction are outliers chosen before the "
             "weights are quantized again"},
    {.name = "steps",
     .type = OptionSpec::Type::kInt,
     .default_value = "2",
     .min = 1,
     .max = 16,
     .help = "rounds of detaching, the integral taken anew before each"},
    {.name = "nodes",
     .type = OptionSpec::Type::kInt,
     .default_value = "3",
     .min = 1,
     .max = 16,
     .help = "Gauss-Legendre nodes on the path from the original to the quantized weights"},
    {.name = "exponent",
     .type = OptionSpec::Type::kDouble,
     .default_value = "1",
     .min = 0,
     .max = 4,
     .help = "a linear's share of outliers is proportional to this power of its mean |dF|"},
};

constexpr OutlierPolicyRow kRows[] = {
    {.name = "none",
     .summary = "every weight is quantized",
     .paper = "",
     .options = {},
     .needs = [](const OptionMap&) { return std::vector<std::string_view>{}; }},
    {.name = "gwq",
     .summary =
         "the weights with the largest gradient of one calibration window (a reconstruction: "
         "the paper's text gives no formula)",
     .paper = "arXiv:2411.00850",
     .options = kGwqOptions,
     .needs =
         [](const OptionMap& options) {
           std::vector<std::string_view> needs;
           const std::string& score = OptionWord(options, "score");
           if (score == "fisher_delta") needs.push_back(kFisherDiagonal);
           if (score == "gradient" || score == "gradient_delta") needs.push_back(kWeightGradient);
           return needs;
         }},
    {.name = "squeezellm",
     .summary = "a few weights by sensitivity, then the largest ones of each linear",
     .paper = "arXiv:2306.07629",
     .options = kSqueezellmOptions,
     .needs = [](const OptionMap&) { return std::vector<std::string_view>{kFisherDiagonal}; }},
    {.name = "pqi",
     .summary = "ReQuant: outliers per linear and last detached weights by the loss integral along "
                "the way to the quantized weights (steps reconstructed from the paper's tables)",
     .paper = "arXiv:2503.01901",
     .options = kPqiOptions,
     .needs = [](const OptionMap&) { return std::vector<std::string_view>{}; }},
};

}  // namespace

std::span<const OutlierPolicyRow> OutlierPolicies() { return kRows; }

absl::StatusOr<const OutlierPolicyRow*> FindOutlierPolicy(std::string_view name) {
  std::vector<std::string_view> known;
  for (const OutlierPolicyRow& row : kRows) {
    if (row.name == name) return &row;
    known.push_back(row.name);
  }
  return absl::InvalidArgumentError(UnknownNameMessage("outlier policy", name, known));
}

}  // namespace gradq
