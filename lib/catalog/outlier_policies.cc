#include "lib/catalog/outlier_policies.h"

namespace gradq {
namespace {

constexpr OutlierPolicyRow kRows[] = {
    {.name = "none",
     .summary = "every weight is quantized",
     .paper = "",
     .options = {},
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
