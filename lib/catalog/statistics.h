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
  // Bytes a worker holds for one linear [out, in] with g groups, while it accumulates (whole
  // squares) and when finished (packed triangles).
  double (*accumulating_bytes)(int64_t out, int64_t in, int groups);
  double (*finished_bytes)(int64_t out, int64_t in, int groups);
  // Multiply-adds × 2 of one token, symmetric work counted once.
  double (*flop_per_token)(int64_t out, int64_t in, int groups);
};

inline constexpr std::string_view kFisherBlocks = "fisher_blocks";
inline constexpr std::string_view kFisherDiagonal = "fisher_diagonal";
inline constexpr std::string_view kWeightGradient = "weight_gradient";
inline constexpr std::string_view kOutputFisher = "output_fisher";
inline constexpr std::string_view kGram = "gram";

std::span<const StatisticRow> Statistics();
// INVALID_ARGUMENT naming the nearest known statistic.
absl::StatusOr<const StatisticRow*> FindStatistic(std::string_view name);

}  // namespace gradq
