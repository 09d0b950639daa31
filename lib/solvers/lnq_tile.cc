#include "lib/solvers/lnq_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

using kernels::kTileRows;

constexpr float kLargestHalf = 65504.0f;

}  // namespace

LnqTile::LnqTile(int64_t columns, const LnqSettings& settings)
    : columns_(columns), settings_(settings), step_(columns, settings.levels) {
  const int64_t panel = columns * kTileRows, levels = settings.levels * kTileRows;
  storage_ = kernels::AlignedFloats(4 * panel + 4 * levels);
  float* next = storage_.data();
  const auto take = [&next](int64_t floats) { return std::exchange(next, next + floats); };
  weight_ = take(panel);
  midpoint_ = take(levels);
  for (Solution* solution : {&best_, &candidate_, &trial_}) {
    solution->error = take(panel);
    solution->table = take(levels);
  }
  codes_.resize(panel);
  row_values_.resize(columns);
  row_codes_.resize(columns);
  centers_.resize(settings.levels);
}

kernels::RowTile LnqTile::View(const Solution& solution) {
  return {weight_, solution.error, settings_.levels, solution.table, midpoint_};
}

void LnqTile::SetMidpoints(const Solution& solution) {
  for (int64_t i = 0; i < (settings_.levels - 1) * kTileRows; ++i) {
    midpoint_[i] = 0.5f * (solution.table[i] + solution.table[i + kTileRows]);
  }
}

void LnqTile::Evaluate(const LnqGroup& group, Solution* solution) {
  kernels::QuadraticForms(group.panels, solution->error, solution->objective);
}

void LnqTile::Copy(const Solution& from, Solution* to) {
  std::copy_n(from.error, columns_ * kTileRows, to->error);
  std::copy_n(from.table, settings_.levels * kTileRows, to->table);
  std::copy_n(from.objective, kTileRows, to->objective);
}

bool LnqTile::Keep(const Solution& candidate, Solution* best) {
  bool better[kTileRows];
  int count = 0;
  for (int row = 0; row < kTileRows; ++row) {
    better[row] = candidate.objective[row] < best->objective[row];
    count += better[row];
  }
  if (count == 0) return false;
  const auto merge = [&](const float* from, float* to, int64_t length) {
    for (int64_t i = 0; i < length; ++i) {
      for (int row = 0; row < kTileRows; ++row) {
        const int64_t at = i * kTileRows + row;
        to[at] = better[row] ? from[at] : to[at];
      }
    }
  };
  merge(candidate.error, best->error, columns_);
  merge(candidate.table, best->table, settings_.levels);
  for (int row = 0; row < kTileRows; ++row) {
    if (better[row]) best->objective[row] = candidate.objective[row];
  }
  return true;
}

// The optimal weighted k-means of each row, unrounded.
void LnqTile::Start(const LnqGroup& group) {
  for (int row = 0; row < rows_; ++row) {
    for (int64_t j = 0; j < columns_; ++j) row_values_[j] = weight_[j * kTileRows + row];
    kernels::OptimalKmeans1d(row_values_, group.kmeans_weight, centers_, &kmeans_);
    for (int q = 0; q < settings_.levels; ++q) {
      best_.table[q * kTileRows + row] = static_cast<float>(centers_[q]);
    }
  }
  SetMidpoints(best_);
  kernels::RoundToNearest(columns_, View(best_), nullptr, nullptr);
  Evaluate(group, &best_);
}

bool LnqTile::CodebookStep(const LnqGroup& group) {
  // Codes of the current solution: ŵ itself is its nearest codeword.
  Copy(best_, &candidate_);
  for (int64_t i = 0; i < columns_ * kTileRows; ++i) trial_.error[i] = weight_[i] + best_.error[i];
  SetMidpoints(candidate_);
  kernels::RoundToNearest(columns_, View(candidate_), trial_.error, codes_.data());
  for (int row = 0; row < rows_; ++row) {
    step_.Update(group.matrix, row, weight_, codes_.data(), CodebookRidge::kRelative,
                 candidate_.error, candidate_.table);
  }
  Evaluate(group, &candidate_);
  return Keep(candidate_, &best_);
}

bool LnqTile::AssignmentStep(const LnqGroup& group) {
  const float* inverse = group.inverse_diagonal.data();
  SetMidpoints(best_);
  Copy(best_, &trial_);
  const int candidates = 1 + static_cast<int>(group.orders.size());
  bool improved = false;
  for (int i = 0; i < candidates; ++i) {
    Copy(trial_, &candidate_);
    const kernels::RowTile view = View(candidate_);
    if (i > 0) {
      const FeedbackOrder& feedback = group.orders[i - 1];
      kernels::ErrorFeedbackRounding(feedback.feedback, feedback.order.data(), view);
    }
    for (int cycle = 0; cycle < settings_.cycles; ++cycle) {
      if (!kernels::CoordinateDescentCycle(group.panels, inverse, view, nullptr)) break;
    }
    Evaluate(group, &candidate_);
    improved |= Keep(candidate_, &best_);
  }
  return improved;
}

absl::Status LnqTile::RoundTable() {
  for (int64_t i = 0; i < settings_.levels * kTileRows; ++i) {
    float& value = best_.table[i];
    if (!(std::fabs(value) < kLargestHalf + 16.0f)) {
      return absl::InvalidArgumentError(StrCat("codeword beyond fp16: ", value));
    }
    value = Float16Value(Float16Bits(value));
  }
  return absl::OkStatus();
}

absl::Status LnqTile::Solve(const LnqGroup& group, const float* weights, int rows,
                            const std::function<bool()>& cancelled, const LnqOutput& output) {
  rows_ = rows;
  const auto stop = [&] { return cancelled && cancelled(); };
  std::fill_n(weight_, columns_ * kTileRows, 0.0f);
  std::fill_n(best_.table, settings_.levels * kTileRows, 0.0f);
  for (int row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < columns_; ++j) {
      weight_[j * kTileRows + row] = weights[row * columns_ + j];
    }
  }
  Start(group);
  // The reported start is the k-means table as it would be stored.
  Copy(best_, &trial_);
  GRADQ_RETURN_IF_ERROR(RoundTable());
  SetMidpoints(best_);
  kernels::RoundToNearest(columns_, View(best_), nullptr, nullptr);
  double exact[kTileRows];
  kernels::ExactQuadraticForms(group.panels, best_.error, exact);
  std::copy_n(exact, rows, output.initial);
  Copy(trial_, &best_);

  for (int iteration = 0; iteration < settings_.iterations; ++iteration) {
    if (stop()) return absl::CancelledError("solve cancelled");
    bool improved = iteration > 0 && AssignmentStep(group);
    improved |= CodebookStep(group);
    if (!improved) break;
  }

  // Codewords move a little when they are rounded; the assignment follows.
  for (int64_t i = 0; i < columns_ * kTileRows; ++i) trial_.error[i] = weight_[i] + best_.error[i];
  SetMidpoints(best_);
  kernels::RoundToNearest(columns_, View(best_), trial_.error, codes_.data());
  GRADQ_RETURN_IF_ERROR(RoundTable());
  for (int64_t j = 0; j < columns_; ++j) {
    for (int row = 0; row < kTileRows; ++row) {
      const int64_t at = j * kTileRows + row;
      best_.error[at] = best_.table[codes_[at] * kTileRows + row] - weight_[at];
    }
  }
  SetMidpoints(best_);
  for (int cycle = 0; cycle < settings_.cycles; ++cycle) {
    if (!kernels::CoordinateDescentCycle(group.panels, group.inverse_diagonal.data(), View(best_),
                                         nullptr)) {
      break;
    }
  }
  kernels::ExactQuadraticForms(group.panels, best_.error, exact);
  std::copy_n(exact, rows, output.final);
  for (int64_t i = 0; i < columns_ * kTileRows; ++i) trial_.error[i] = weight_[i] + best_.error[i];
  kernels::RoundToNearest(columns_, View(best_), trial_.error, codes_.data());
  for (int row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < columns_; ++j) row_codes_[j] = codes_[j * kTileRows + row];
    for (int q = 0; q < settings_.levels; ++q) {
      row_values_.resize(std::max<size_t>(row_values_.size(), settings_.levels));
      row_values_[q] = best_.table[q * kTileRows + row];
    }
    StoreRow(std::span(row_values_.data(), settings_.levels), row_codes_,
             std::span(output.lut + row * settings_.levels, settings_.levels),
             std::span(output.codes + row * columns_, columns_));
  }
  row_values_.resize(columns_);
  return absl::OkStatus();
}

}  // namespace gradq
