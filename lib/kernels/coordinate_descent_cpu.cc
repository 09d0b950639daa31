#include <algorithm>
#include <cmath>

#include "lib/kernels/coordinate_descent.h"

namespace gradq::kernels {

PanelMatrix::PanelMatrix(const float* matrix, int64_t columns) : columns_(columns) {
  storage_ = AlignedFloats(panels() * columns * kPanelColumns);
  float* out = storage_.data();
  for (int64_t panel = 0; panel < panels(); ++panel) {
    const int64_t first = panel * kPanelColumns;
    const int64_t width = std::min<int64_t>(kPanelColumns, columns - first);
    for (int64_t k = 0; k < columns; ++k) {
      std::copy_n(matrix + k * columns + first, width, out + (panel * columns + k) * kPanelColumns);
    }
  }
}

namespace reference {
namespace {

float Nearest(const RowTile& tile, int row, float target) {
  int q = 0;
  while (q + 1 < tile.levels && target > tile.midpoint[q * kTileRows + row]) ++q;
  return tile.table[q * kTileRows + row];
}

bool IsActive(const RowTile& tile, int64_t at) {
  return tile.active == nullptr || tile.active[at] != 0.0f;
}

}  // namespace

bool CoordinateDescentCycle(const PanelMatrix& h, const float* inverse_diagonal,
                            const RowTile& tile, float* decrease) {
  bool changed = false;
  if (decrease != nullptr) std::fill_n(decrease, kTileRows, 0.0f);
  for (int64_t panel = 0; panel < h.panels(); ++panel) {
    const float* columns = h.panel(panel);
    const int64_t first = panel * kPanelColumns;
    const int width = static_cast<int>(std::min<int64_t>(kPanelColumns, h.columns() - first));
    for (int row = 0; row < kTileRows; ++row) {
      float product[kPanelColumns] = {};
      for (int64_t k = 0; k < h.columns(); ++k) {
        for (int c = 0; c < kPanelColumns; ++c) {
          product[c] =
              std::fma(columns[k * kPanelColumns + c], tile.error[k * kTileRows + row], product[c]);
        }
      }
      float fell = 0.0f;
      for (int c = 0; c < width; ++c) {
        const int64_t j = first + c;
        const float* block_row = columns + j * kPanelColumns;
        float& error = tile.error[j * kTileRows + row];
        const float weight = tile.weight[j * kTileRows + row];
        const float target = weight + std::fma(-product[c], inverse_diagonal[j], error);
        const float moved =
            IsActive(tile, j * kTileRows + row) ? Nearest(tile, row, target) - weight : 0.0f;
        const float delta = moved - error;
        error = moved;
        changed |= delta != 0.0f;
        fell = std::fma(-delta, std::fma(delta, block_row[c], product[c] + product[c]), fell);
        for (int later = c + 1; later < width; ++later) {
          product[later] = std::fma(delta, block_row[later], product[later]);
        }
      }
      if (decrease != nullptr) decrease[row] += fell;
    }
  }
  return changed;
}

void ErrorFeedbackRounding(const PanelMatrix& feedback, const int32_t* order, const RowTile& tile) {
  for (int row = 0; row < kTileRows; ++row) {
    for (int64_t position = 0; position < feedback.columns(); ++position) {
      const int64_t panel = position / kPanelColumns, c = position % kPanelColumns;
      float sum = 0.0f;
      for (int64_t k = 0; k < position; ++k) {
        sum = std::fma(feedback.panel(panel)[k * kPanelColumns + c],
                       tile.error[order[k] * kTileRows + row], sum);
      }
      const int64_t j = order[position];
      const float weight = tile.weight[j * kTileRows + row];
      tile.error[j * kTileRows + row] =
          IsActive(tile, j * kTileRows + row) ? Nearest(tile, row, weight - sum) - weight : 0.0f;
    }
  }
}

void ExactQuadraticForms(const PanelMatrix& h, const float* error, double* forms) {
  for (int row = 0; row < kTileRows; ++row) {
    forms[row] = 0.0;
    for (int64_t j = 0; j < h.columns(); ++j) {
      const float* column = h.panel(j / kPanelColumns) + j % kPanelColumns;
      double sum = 0.0;
      for (int64_t k = 0; k < h.columns(); ++k) {
        sum = std::fma(static_cast<double>(column[k * kPanelColumns]),
                       static_cast<double>(error[k * kTileRows + row]), sum);
      }
      forms[row] += sum * error[j * kTileRows + row];
    }
  }
}

void QuadraticForms(const PanelMatrix& h, const float* error, double* forms) {
  for (int row = 0; row < kTileRows; ++row) {
    forms[row] = 0.0;
    for (int64_t j = 0; j < h.columns(); ++j) {
      const float* column = h.panel(j / kPanelColumns) + j % kPanelColumns;
      float sum = 0.0f;
      for (int64_t k = 0; k < h.columns(); ++k) {
        sum = std::fma(column[k * kPanelColumns], error[k * kTileRows + row], sum);
      }
      forms[row] += static_cast<double>(sum) * error[j * kTileRows + row];
    }
  }
}

}  // namespace reference
}  // namespace gradq::kernels
