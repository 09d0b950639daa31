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

// Perturbed candidates of an assignment step, how far weights are moved (in mean distances of
// codewords), and how many of 65,536 columns.
constexpr int kPerturbations = 4;
constexpr float kWeightShift = 0.05f;
constexpr uint64_t kMovedColumns = 1311;

// SplitMix64: the same perturbation for every row, so that a row's neighbours don't matter.
uint64_t Mix(uint64_t seed, int64_t column) {
  uint64_t x = seed * 0xd1342543de82ef95ull + static_cast<uint64_t>(column) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

}  // namespace

LnqTile::LnqTile(int64_t columns, const LnqSettings& settings)
    : columns_(columns), settings_(settings), step_(columns, settings.levels) {
  const int64_t panel = columns * kTileRows, levels = settings.levels * kTileRows;
  storage_ = kernels::AlignedFloats(5 * panel + 4 * levels);
  float* next = storage_.data();
  const auto take = [&next](int64_t floats) { return std::exchange(next, next + floats); };
  weight_ = take(panel);
  active_storage_ = take(panel);
  midpoint_ = take(levels);
  for (Solution* solution : {&best_, &candidate_, &trial_}) {
    solution->error = take(panel);
    solution->table = take(levels);
  }
  codes_.resize(panel);
  row_values_.resize(columns);
  row_importance_.resize(columns);
  row_codes_.resize(columns);
  centers_.resize(settings.levels);
}

kernels::RowTile LnqTile::View(const Solution& solution) {
  return {weight_, solution.error, settings_.levels, solution.table, midpoint_, active_};
}

void LnqTile::HoldApart(float* error) const {
  if (active_ == nullptr) return;
  for (int64_t i = 0; i < columns_ * kTileRows; ++i) {
    if (active_[i] == 0.0f) error[i] = 0.0f;
  }
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

std::span<const float> LnqTile::Importance(const LnqGroup& group, int row) {
  if (active_ == nullptr) return group.kmeans_weight;
  std::vector<uint8_t>& apart = row_codes_;
  for (int64_t j = 0; j < columns_; ++j) apart[j] = active_[j * kTileRows + row] == 0.0f;
  ImportanceWithout(apart, group.kmeans_weight, row_importance_);
  return row_importance_;
}

// The optimal weighted k-means of each row, unrounded.
void LnqTile::Start(const LnqGroup& group) {
  for (int row = 0; row < rows_; ++row) {
    for (int64_t j = 0; j < columns_; ++j) row_values_[j] = weight_[j * kTileRows + row];
    kernels::OptimalKmeans1d(row_values_, Importance(group, row), centers_, &kmeans_);
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
                 candidate_.error, candidate_.table, active_);
  }
  Evaluate(group, &candidate_);
  return Keep(candidate_, &best_);
}

bool LnqTile::Descend(const LnqGroup& group) {
  const kernels::RowTile view = View(candidate_);
  for (int cycle = 0; cycle < settings_.cycles; ++cycle) {
    if (!kernels::CoordinateDescentCycle(group.panels, group.inverse_diagonal.data(), view,
                                         nullptr)) {
      break;
    }
  }
  Evaluate(group, &candidate_);
  return Keep(candidate_, &best_);
}

// Error feedback on weights moved by a small share of a codeword's distance to the next: nearly
// the same roundings, but other ones where two codewords were almost equally near.
void LnqTile::FeedbackOfMovedWeights(const FeedbackOrder& feedback, uint64_t seed) {
  float range[kTileRows];
  for (int row = 0; row < kTileRows; ++row) {
    const float* table = best_.table + row;
    range[row] = kWeightShift * (table[(settings_.levels - 1) * kTileRows] - table[0]) /
                 static_cast<float>(settings_.levels - 1);
  }
  float* moved = trial_.error;
  for (int64_t j = 0; j < columns_; ++j) {
    const float noise = static_cast<float>(static_cast<int32_t>(Mix(seed, j))) * 0x1p-31f;
    for (int row = 0; row < kTileRows; ++row) {
      moved[j * kTileRows + row] = weight_[j * kTileRows + row] + noise * range[row];
    }
  }
  kernels::RowTile view = View(candidate_);
  view.weight = moved;
  kernels::ErrorFeedbackRounding(feedback.feedback, feedback.order.data(), view);
  for (int64_t i = 0; i < columns_ * kTileRows; ++i) {
    candidate_.error[i] += moved[i] - weight_[i];
  }
  HoldApart(candidate_.error);
}

// The best solution with a few columns moved to a neighbouring codeword.
void LnqTile::MoveSomeColumns(uint64_t seed) {
  Copy(best_, &candidate_);
  for (int64_t j = 0; j < columns_; ++j) {
    const uint64_t random = Mix(seed, j);
    if ((random & 0xffff) >= kMovedColumns) continue;
    const int step = (random >> 16 & 1) != 0 ? 1 : -1;
    for (int row = 0; row < kTileRows; ++row) {
      const int64_t at = j * kTileRows + row;
      const float value = weight_[at] + candidate_.error[at];
      int q = 0;
      while (q + 1 < settings_.levels && value > midpoint_[q * kTileRows + row]) ++q;
      const int to = q + step < 0 || q + step >= settings_.levels ? q - step : q + step;
      candidate_.error[at] = candidate_.table[to * kTileRows + row] - weight_[at];
    }
  }
  HoldApart(candidate_.error);
}

bool LnqTile::AssignmentStep(const LnqGroup& group, int iteration) {
  SetMidpoints(best_);
  Copy(best_, &candidate_);
  bool improved = Descend(group);
  for (const FeedbackOrder& feedback : group.orders) {
    if (Stopped()) return improved;
    std::copy_n(best_.table, settings_.levels * kTileRows, candidate_.table);
    kernels::ErrorFeedbackRounding(feedback.feedback, feedback.order.data(), View(candidate_));
    improved |= Descend(group);
  }
  if (group.orders.empty()) return improved;
  for (int perturbation = 0; perturbation < kPerturbations; ++perturbation) {
    if (Stopped()) return improved;
    const uint64_t seed = static_cast<uint64_t>(iteration) * kPerturbations + perturbation;
    if (perturbation % 2 == 0) {
      std::copy_n(best_.table, settings_.levels * kTileRows, candidate_.table);
      FeedbackOfMovedWeights(group.orders[perturbation / 2 % group.orders.size()], seed);
    } else {
      MoveSomeColumns(seed);
    }
    improved |= Descend(group);
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

// Rows that don't exist are zeros and active.
void LnqTile::Load(const float* weights, const uint8_t* apart) {
  const int64_t count = rows_ * columns_;
  const bool any =
      apart != nullptr && std::any_of(apart, apart + count, [](uint8_t flag) { return flag != 0; });
  active_ = any ? active_storage_ : nullptr;
  std::fill_n(weight_, columns_ * kTileRows, 0.0f);
  if (any) std::fill_n(active_, columns_ * kTileRows, 1.0f);
  for (int row = 0; row < rows_; ++row) {
    for (int64_t j = 0; j < columns_; ++j) {
      weight_[j * kTileRows + row] = weights[row * columns_ + j];
      if (any && apart[row * columns_ + j] != 0) active_[j * kTileRows + row] = 0.0f;
    }
  }
}

absl::Status LnqTile::Solve(const LnqGroup& group, const float* weights, const uint8_t* apart,
                            int rows, const std::function<bool()>& cancelled,
                            const LnqOutput& output) {
  rows_ = rows;
  cancelled_ = &cancelled;
  std::fill_n(best_.table, settings_.levels * kTileRows, 0.0f);
  Load(weights, apart);
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
    if (Stopped()) return absl::CancelledError("solve cancelled");
    bool improved = iteration > 0 && AssignmentStep(group, iteration);
    improved |= CodebookStep(group);
    if (!improved) break;
  }
  if (Stopped()) return absl::CancelledError("solve cancelled");

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
  HoldApart(best_.error);
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
