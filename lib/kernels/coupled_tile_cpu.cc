#include <cmath>

#include "lib/kernels/coupled_tile.h"

namespace gradq::kernels::reference {

void MultiplyAdd(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
                 int64_t depth, int64_t width, bool accumulate, float* c, int64_t c_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < width; ++j) {
      float sum = accumulate ? c[r * c_stride + j] : 0.0f;
      for (int64_t k = 0; k < depth; ++k)
        sum = std::fma(a[r * a_stride + k], b[k * b_stride + j], sum);
      c[r * c_stride + j] = sum;
    }
  }
}

int64_t DescendTile(const CoupledTile& tile) {
  int64_t changes = 0;
  for (int i = 0; i < tile.columns; ++i) {
    const float* shared = tile.shared + i * tile.shared_stride;
    for (int j = 0; j < tile.rows; ++j) {
      const int64_t at = j * tile.stride + i;
      if (tile.apart != nullptr && tile.apart[at] != 0) continue;
      const float* own = tile.own == nullptr ? nullptr : tile.own[j] + i * tile.shared_stride;
      const float diagonal = tile.output[j * tile.output_stride + j];
      const float matrix =
          own == nullptr ? shared[i] : std::fma(tile.own_factor, own[i], shared[i]);
      const float curvature = diagonal * matrix;
      if (!(curvature > 0.0f)) continue;
      const float target =
          tile.weight[at] + (tile.error[at] - tile.gradient[j * kCoupledTile + i] / curvature);
      const float* table = tile.table + j * tile.levels;
      int code = 0;
      while (code + 1 < tile.levels && target > 0.5f * (table[code] + table[code + 1])) ++code;
      const float error = table[code] - tile.weight[at];
      const float moved = error - tile.error[at];
      if (moved == 0.0f) continue;
      ++changes;
      tile.error[at] = error;
      tile.codes[at] = static_cast<uint8_t>(code);
      tile.moved[j * kCoupledTile + i] = moved;
      for (int p = 0; p < tile.rows; ++p) {
        float factor = moved * tile.output[j * tile.output_stride + p];
        if (p != j) factor *= tile.coupling;
        for (int c = 0; c < tile.columns; ++c) {
          float& gradient = tile.gradient[p * kCoupledTile + c];
          gradient = std::fma(factor, shared[c], gradient);
        }
      }
      if (own == nullptr) continue;
      const float factor = moved * diagonal * tile.own_factor;
      for (int c = 0; c < tile.columns; ++c) {
        float& gradient = tile.gradient[j * kCoupledTile + c];
        gradient = std::fma(factor, own[c], gradient);
      }
    }
  }
  return changes;
}

}  // namespace gradq::kernels::reference
