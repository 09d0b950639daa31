#include "lib/solvers/gptq_tile.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lib/format/packing.h"

namespace gradq {
namespace {

using kernels::kTileRows;

constexpr float kSmallestHalf = 0x1p-24f;

}  // namespace

GptqTile::GptqTile(int64_t columns, const GptqSettings& settings)
    : columns_(columns),
      grids_((columns + settings.group_size - 1) / settings.group_size),
      settings_(settings) {
  const int64_t panel = columns * kTileRows, grid = grids_ * kTileRows;
  storage_ = kernels::AlignedFloats(3 * panel + 2 * grid);
  float* next = storage_.data();
  const auto take = [&next](int64_t floats) { return std::exchange(next, next + floats); };
  weight_ = take(panel);
  error_ = take(panel);
  active_ = take(panel);
  scale_ = take(grid);
  zero_ = take(grid);
  for (int64_t j = 0; j < columns; ++j) {
    grid_of_.push_back(static_cast<int32_t>(j / settings.group_size));
  }
  codes_.resize(panel);
}

void GptqTile::Load(const GptqRows& rows) {
  some_apart_ = false;
  std::fill_n(weight_, columns_ * kTileRows, 0.0f);
  std::fill_n(active_, columns_ * kTileRows, 1.0f);
  for (int row = 0; row < rows.rows; ++row) {
    for (int64_t j = 0; j < columns_; ++j) {
      weight_[j * kTileRows + row] = rows.weights[row * columns_ + j];
      if (rows.apart == nullptr || rows.apart[row * columns_ + j] == 0) continue;
      active_[j * kTileRows + row] = 0.0f;
      some_apart_ = true;
    }
  }
}

void GptqTile::LoadStoredErrors(const GptqRows& rows) {
  std::fill_n(error_, columns_ * kTileRows, 0.0f);
  for (int row = 0; row < rows.rows; ++row) {
    for (int64_t j = 0; j < columns_; ++j) {
      const int64_t at = j * kTileRows + row, grid = row * grids_ + grid_of_[j];
      const float steps = static_cast<float>(rows.codes[row * columns_ + j]) -
                          static_cast<float>(rows.zero_point[grid]);
      const float value = steps * Float16Value(rows.scale[grid]);
      if (active_[at] != 0.0f) error_[at] = value - weight_[at];
    }
  }
}

bool GptqTile::FitGrids(int64_t grid, int64_t first, int64_t last) {
  float low[kTileRows] = {}, high[kTileRows] = {};
  for (int64_t at = first * kTileRows; at < last * kTileRows; ++at) {
    const float value = active_[at] * (weight_[at] + error_[at]);
    low[at % kTileRows] = std::min(low[at % kTileRows], value);
    high[at % kTileRows] = std::max(high[at % kTileRows], value);
  }
  bool fits = true;
  for (int row = 0; row < kTileRows; ++row) {
    const float step = (high[row] - low[row]) / static_cast<float>(settings_.highest);
    // The scale as it is stored, so that the error fed back is the true one.
    const float scale =
        Float16Value(Float16Bits(low[row] == high[row] ? 1.0f : std::max(step, kSmallestHalf)));
    fits = fits && std::isfinite(scale);
    scale_[grid * kTileRows + row] = scale;
    zero_[grid * kTileRows + row] =
        std::clamp(std::nearbyint(-low[row] / scale), 0.0f, static_cast<float>(settings_.highest));
  }
  return fits;
}

void GptqTile::Store(const GptqRows& rows, int row) {
  for (int64_t grid = 0; grid < grids_; ++grid) {
    rows.scale[row * grids_ + grid] = Float16Bits(scale_[grid * kTileRows + row]);
    rows.zero_point[row * grids_ + grid] = static_cast<uint8_t>(zero_[grid * kTileRows + row]);
  }
  for (int64_t j = 0; j < columns_; ++j) {
    const int64_t at = j * kTileRows + row, grid = grid_of_[j] * kTileRows + row;
    uint8_t& code = rows.codes[row * columns_ + j];
    code = codes_[at];
    if (active_[at] != 0.0f) continue;
    // Kept apart: the sweep's code means nothing, the nearest one leaves the least to store.
    code = static_cast<uint8_t>(std::clamp(std::nearbyint(weight_[at] / scale_[grid]) + zero_[grid],
                                           0.0f, static_cast<float>(settings_.highest)));
  }
}

absl::Status GptqTile::Solve(const SweepGroup& group, const std::function<bool()>& cancelled,
                             const GptqRows& rows) {
  Load(rows);
  double exact[kTileRows];
  LoadStoredErrors(rows);
  kernels::ExactQuadraticForms(group.panels, error_, exact);
  std::copy_n(exact, rows.rows, rows.initial);

  std::fill_n(error_, columns_ * kTileRows, 0.0f);
  const kernels::AffineGrids grids{settings_.highest, scale_, zero_, grid_of_.data()};
  const kernels::SweepTile tile{weight_, error_, some_apart_ ? active_ : nullptr, codes_.data()};
  const int32_t* order = group.order.data();
  for (int64_t grid = 0; grid < grids_; ++grid) {
    if (cancelled && cancelled()) return absl::CancelledError("solve cancelled");
    const int64_t first = grid * settings_.group_size;
    const int64_t last = std::min(first + settings_.group_size, columns_);
    if (!settings_.static_groups && first > 0) {
      kernels::UnroundedSweep(group.feedback, order, first, last, tile);
    }
    if (!FitGrids(grid, first, last)) return absl::InvalidArgumentError("scale beyond fp16");
    if (!settings_.static_groups) {
      kernels::AffineSweep(group.feedback, order, first, last, grids, tile);
    }
  }
  if (settings_.static_groups) {
    kernels::AffineSweep(group.feedback, order, 0, columns_, grids, tile);
  }
  kernels::ExactQuadraticForms(group.panels, error_, exact);
  for (int row = 0; row < rows.rows; ++row) {
    rows.final[row] = std::min(exact[row], rows.initial[row]);
    if (exact[row] < rows.initial[row]) Store(rows, row);
  }
  return absl::OkStatus();
}

}  // namespace gradq
