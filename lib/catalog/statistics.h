#pragma once

// The table of statistics: what a linear's observations are summed into. Implementations:
// lib/statistics, one file each.

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"

namespace gradq {

struct StatisticRow {
  std::string_view name;     // "fisher_blocks"
  std::string_view formula;  // for `gradq methods`
  bool needs_gradient;
  // Bytes a worker holds for one linear [out, in] with g groups, accumulating and when finished.
  int64_t (*bytes)(int64_t out, int64_t in, int groups);
};

inline constexpr std::string_view kFisherBlocks = "fisher_blocks";
inline constexpr std::string_view kFisherDiagonal = "fisher_diagonal";
inline constexpr std::string_view kGram = "gram";

std::span<const StatisticRow> Statistics();
absl::StatusOr<const StatisticRow*> FindStatistic(std::string_view name);

}  // namespace gradq
