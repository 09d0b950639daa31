#include "lib/catalog/statistics.h"

#include <vector>

#include "lib/catalog/options.h"

namespace gradq {
namespace {

double Product(double a, int64_t b, int64_t c) {
  return a * static_cast<double>(b) * static_cast<double>(c);
}

constexpr StatisticRow kRows[] = {
    {.name = kFisherBlocks,
     .formula = "H_k = X^T diag(s_k) X, s_k = mean over the channels of group k of (1000 dL/dz)^2; "
                "one matrix per group",
     .needs_gradient = true,
     .accumulating_bytes = [](int64_t, int64_t in, int g) { return Product(4.0 * g, in, in); },
     .finished_bytes = [](int64_t, int64_t in, int g) { return Product(2.0 * g, in, in + 1); },
     .flop_per_token = [](int64_t, int64_t in, int g) { return Product(g, in, in); }},
    {.name = kFisherDiagonal,
     .formula = "sum over sequences of (dz^T X)^2, elementwise",
     .needs_gradient = true,
     .accumulating_bytes = [](int64_t out, int64_t in, int) { return Product(4, out, in); },
     .finished_bytes = [](int64_t out, int64_t in, int) { return Product(4, out, in); },
     .flop_per_token = [](int64_t out, int64_t in, int) { return Product(2, out, in); }},
    {.name = kWeightGradient,
     .formula = "sum over sequences of dz^T X, or of its absolute values; over the nodes of a path "
                "with their weights",
     .needs_gradient = true,
     .accumulating_bytes = [](int64_t out, int64_t in, int) { return Product(4, out, in); },
     .finished_bytes = [](int64_t out, int64_t in, int) { return Product(4, out, in); },
     .flop_per_token = [](int64_t out, int64_t in, int) { return Product(2, out, in); }},
    {.name = kOutputFisher,
     .formula = "sum over tokens of mean(x^2) (1000 dL/dz)(1000 dL/dz)^T: how the output channels' "
                "gradients go together",
     .needs_gradient = true,
     .accumulating_bytes = [](int64_t out, int64_t, int) { return Product(4, out, out); },
     .finished_bytes = [](int64_t out, int64_t, int) { return Product(2, out, out + 1); },
     .flop_per_token = [](int64_t out, int64_t, int) { return Product(1, out, out); }},
    {.name = kGram,
     .formula = "X^T X",
     .needs_gradient = false,
     .accumulating_bytes = [](int64_t, int64_t in, int) { return Product(4, in, in); },
     .finished_bytes = [](int64_t, int64_t in, int) { return Product(2, in, in + 1); },
     .flop_per_token = [](int64_t, int64_t in, int) { return Product(1, in, in); }},
};

}  // namespace

std::span<const StatisticRow> Statistics() { return kRows; }

absl::StatusOr<const StatisticRow*> FindStatistic(std::string_view name) {
  std::vector<std::string_view> known;
  for (const StatisticRow& row : kRows) {
    if (row.name == name) return &row;
    known.push_back(row.name);
  }
  return absl::InvalidArgumentError(UnknownNameMessage("statistic", name, known));
}

}  // namespace gradq
