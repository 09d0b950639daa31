#pragma once

// The table of outlier policies: which weights a policy keeps apart in fp16 before the rest is
// quantized. Same shape as quantizers.h; the policies' code belongs to lib/solvers/outliers, one
// file each. Read by the CLI, the coordinator and `gradq methods`.

#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/options.h"

namespace gradq {

struct OutlierPolicyRow {
  std::string_view name;
  std::string_view summary;
  std::string_view paper;
  std::span<const OptionSpec> options;
  // Statistics (names of lib/catalog/statistics.h) that the choice reads.
  std::vector<std::string_view> (*needs)(const OptionMap& options);
};

std::span<const OutlierPolicyRow> OutlierPolicies();
// INVALID_ARGUMENT naming the nearest known policy.
absl::StatusOr<const OutlierPolicyRow*> FindOutlierPolicy(std::string_view name);

}  // namespace gradq
