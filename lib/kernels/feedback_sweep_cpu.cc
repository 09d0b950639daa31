#include <algorithm>
#include <cmath>

#include "lib/kernels/feedback_sweep.h"

namespace gradq::kernels::reference {
namespace {

// round(column, row, target, &code) gives ŵ.
template <typename Round>
void Sweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
           const SweepTile& tile, Round&& round) {
  for (int64_t position = from; position < to; ++position) {
    const float* panel = feedback.panel(position / kPanelColumns) + position % kPanelColumns;
    const int64_t column = order[position];
    for (int row = 0; row < kTileRows; ++row) {
      float sum = 0.0f;
      for (int64_t i = 0; i < position; ++i) {
        sum = std::fma(panel[i * kPanelColumns], tile.error[order[i] * kTileRows + row], sum);
      }
      const int64_t at = column * kTileRows + row;
      const float error = round(column, row, tile.weight[at] - sum) - tile.weight[at];
      tile.error[at] = tile.active != nullptr && tile.active[at] == 0.0f ? 0.0f : error;
    }
  }
}

}  // namespace

void AffineSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                 const AffineGrids& grids, const SweepTile& tile) {
  Sweep(feedback, order, from, to, tile, [&](int64_t column, int row, float target) {
    const int64_t at = static_cast<int64_t>(grids.grid[column]) * kTileRows + row;
    const float code = std::clamp(std::nearbyint(target / grids.scale[at]) + grids.zero[at], 0.0f,
                                  static_cast<float>(grids.highest));
    tile.codes[column * kTileRows + row] = static_cast<uint8_t>(code);
    return (code - grids.zero[at]) * grids.scale[at];
  });
}

void CodebookSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                   const RowCodebooks& codebooks, const SweepTile& tile) {
  Sweep(feedback, order, from, to, tile, [&](int64_t column, int row, float target) {
    int code = 0;
    while (code + 1 < codebooks.levels && target > codebooks.midpoint[code * kTileRows + row])
      ++code;
    tile.codes[column * kTileRows + row] = static_cast<uint8_t>(code);
    return codebooks.table[code * kTileRows + row];
  });
}

void UnroundedSweep(const PanelMatrix& feedback, const int32_t* order, int64_t from, int64_t to,
                    const SweepTile& tile) {
  Sweep(feedback, order, from, to, tile, [](int64_t, int, float target) { return target; });
}

}  // namespace gradq::kernels::reference
