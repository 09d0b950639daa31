#include "lib/solvers/gptvq_tile.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

using kernels::kTileRows;

}  // namespace

GptvqTile::GptvqTile(int64_t columns, const GptvqSettings& settings)
    : columns_(columns), settings_(settings), step_(columns, settings.levels) {
  const int64_t panel = columns * kTileRows, levels = settings.levels * kTileRows;
  storage_ = kernels::AlignedFloats(4 * panel + 3 * levels);
  float* next = storage_.data();
  const auto take = [&next](int64_t floats) { return std::exchange(next, next + floats); };
  weight_ = take(panel);
  error_ = take(panel);
  active_ = take(panel);
  target_ = take(panel);
  table_ = take(levels);
  midpoint_ = take(levels);
  unrounded_ = take(levels);
  codes_.resize(panel);
  row_values_.resize(columns);
  row_weights_.resize(columns);
  row_codes_.resize(columns);
  row_table_.resize(settings.levels);
  centers_.resize(settings.levels);
}

void GptvqTile::Load(const GptvqRows& rows) {
  some_apart_ = false;
  std::fill_n(weight_, columns_ * kTileRows, 0.0f);
  std::fill_n(active_, columns_ * kTileRows, 1.0f);
  std::fill_n(table_, settings_.levels * kTileRows, 0.0f);
  for (int row = 0; row < rows.rows; ++row) {
    for (int64_t j = 0; j < columns_; ++j) {
      weight_[j * kTileRows + row] = rows.weights[row * columns_ + j];
      if (rows.apart == nullptr || rows.apart[row * columns_ + j] == 0) continue;
      active_[j * kTileRows + row] = 0.0f;
      some_apart_ = true;
    }
  }
}

void GptvqTile::Start(const SweepGroup& group, int rows) {
  for (int row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < columns_; ++j) {
      row_values_[j] = weight_[j * kTileRows + row];
      row_weights_[j] = group.importance[j] * active_[j * kTileRows + row];
    }
    kernels::OptimalKmeans1d(row_values_, row_weights_, centers_, &kmeans_);
    for (int q = 0; q < settings_.levels; ++q) {
      table_[q * kTileRows + row] = static_cast<float>(centers_[q]);
    }
  }
}

void GptvqTile::SetMidpoints() {
  for (int64_t i = 0; i < (settings_.levels - 1) * kTileRows; ++i) {
    midpoint_[i] = 0.5f * (table_[i] + table_[i + kTileRows]);
  }
}

void GptvqTile::Assign(const float* target) {
  SetMidpoints();
  const kernels::RowTile tile{weight_, error_, settings_.levels, table_, midpoint_};
  kernels::RoundToNearest(columns_, tile, target, codes_.data());
  if (!some_apart_) return;
  for (int64_t i = 0; i < columns_ * kTileRows; ++i) error_[i] *= active_[i];
}

absl::Status GptvqTile::RoundTable() {
  std::copy_n(table_, settings_.levels * kTileRows, unrounded_);
  for (int64_t i = 0; i < settings_.levels * kTileRows; ++i) {
    const float value = Float16Value(Float16Bits(table_[i]));
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError(StrCat("codeword beyond fp16: ", table_[i]));
    }
    table_[i] = value;
  }
  for (int64_t at = 0; at < columns_ * kTileRows; ++at) {
    const float value = table_[codes_[at] * kTileRows + at % kTileRows];
    error_[at] = active_[at] * (value - weight_[at]);
  }
  return absl::OkStatus();
}

void GptvqTile::Keep(const SweepGroup& group, bool all, const GptvqRows& rows) {
  double exact[kTileRows];
  kernels::ExactQuadraticForms(group.panels, error_, exact);
  for (int row = 0; row < rows.rows; ++row) {
    if (!all && !(exact[row] < rows.final[row])) continue;
    rows.final[row] = exact[row];
    for (int64_t j = 0; j < columns_; ++j) row_codes_[j] = codes_[j * kTileRows + row];
    for (int q = 0; q < settings_.levels; ++q) row_table_[q] = table_[q * kTileRows + row];
    StoreRow(row_table_, row_codes_, std::span(rows.lut + row * settings_.levels, settings_.levels),
             std::span(rows.codes + row * columns_, columns_));
  }
}

absl::Status GptvqTile::Solve(const SweepGroup& group, const std::function<bool()>& cancelled,
                              const GptvqRows& rows) {
  Load(rows);
  Start(group, rows.rows);
  Assign(weight_);
  GRADQ_RETURN_IF_ERROR(RoundTable());
  Assign(weight_);
  Keep(group, /*all=*/true, rows);
  std::copy_n(rows.final, rows.rows, rows.initial);

  for (int iteration = 0; iteration < settings_.iterations; ++iteration) {
    if (cancelled && cancelled()) return absl::CancelledError("solve cancelled");
    std::copy_n(unrounded_, settings_.levels * kTileRows, table_);
    SetMidpoints();
    const kernels::RowCodebooks codebooks{settings_.levels, table_, midpoint_};
    kernels::CodebookSweep(group.feedback, group.order.data(), 0, columns_, codebooks,
                           {weight_, error_, some_apart_ ? active_ : nullptr, codes_.data()});
    for (int row = 0; row < rows.rows; ++row) {
      step_.Update(group.matrix, row, weight_, codes_.data(), CodebookRidge::kRelative, error_,
                   table_, some_apart_ ? active_ : nullptr);
    }
    // The update sorts the codewords: ŵ itself is its nearest one.
    for (int64_t i = 0; i < columns_ * kTileRows; ++i) target_[i] = weight_[i] + error_[i];
    Assign(target_);
    GRADQ_RETURN_IF_ERROR(RoundTable());
    Keep(group, /*all=*/false, rows);
  }
  return absl::OkStatus();
}

}  // namespace gradq
