#include <algorithm>
#include <cmath>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/solvers/quantizers/methods.h"

namespace gradq {
namespace {

constexpr float kSmallestHalf = 0x1p-24f;
constexpr float kSmallestNormalHalf = 0x1p-14f;

struct AffineGrid {
  uint16_t scale = 0;    // fp16 bits
  float divisor = 0.0f;  // turns weights into codes
  uint8_t zero_point = 0;
};

// The grid of 2^bits values from the smallest to the largest weight, which always holds 0. Weights
// kept apart (`apart` as LayerProblem::apart, or null) don't widen it, as in SpQR
// (arXiv:2306.03078).
AffineGrid GridOf(const float* weights, const uint8_t* apart, int64_t count, int highest) {
  float low = 0.0f, high = 0.0f;
  for (int64_t j = 0; j < count; ++j) {
    if (apart != nullptr && apart[j] != 0) continue;
    low = std::min(low, weights[j]);
    high = std::max(high, weights[j]);
  }
  const float range = (high - low) / static_cast<float>(highest);
  AffineGrid grid;
  // Codes come from the exact step, as is the custom; its fp16 rounding is then a common factor of
  // all weights. Not so where fp16 keeps few digits of it.
  grid.divisor = low == high ? 1.0f : std::max(range, kSmallestHalf);
  grid.scale = Float16Bits(grid.divisor);
  if (grid.divisor < kSmallestNormalHalf) grid.divisor = Float16Value(grid.scale);
  const float zero = std::nearbyint(-low / grid.divisor);
  grid.zero_point = static_cast<uint8_t>(std::clamp(zero, 0.0f, static_cast<float>(highest)));
  return grid;
}

}  // namespace

absl::StatusOr<QuantizedLinear> SolveRtn(const LayerProblem& problem, const SolveContext& context) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  const int64_t group_size = std::min<int64_t>(OptionInt(problem.options, "group_size"), columns);
  const int64_t grids = (columns + group_size - 1) / group_size;
  const int highest = (1 << problem.bits) - 1;
  const float* weight = problem.weight.const_data_ptr<float>();
  QuantizedLinear linear;
  linear.encoding = Encoding::kAffine;
  linear.group_size = group_size;
  linear.scale.resize(rows * grids);
  linear.zero_point.resize(rows * grids);
  std::vector<uint8_t> codes(rows * columns);
  context.pool->ParallelFor(rows, [&](int64_t row, int) {
    for (int64_t g = 0; g < grids; ++g) {
      const int64_t first = g * group_size, last = std::min(first + group_size, columns);
      const float* values = weight + row * columns;
      const uint8_t* apart =
          problem.apart.empty() ? nullptr : problem.apart.data() + row * columns + first;
      const AffineGrid grid = GridOf(values + first, apart, last - first, highest);
      linear.scale[row * grids + g] = grid.scale;
      linear.zero_point[row * grids + g] = grid.zero_point;
      for (int64_t j = first; j < last; ++j) {
        const float code =
            std::nearbyint(values[j] / grid.divisor) + static_cast<float>(grid.zero_point);
        codes[row * columns + j] =
            static_cast<uint8_t>(std::clamp(code, 0.0f, static_cast<float>(highest)));
      }
    }
  });
  for (const uint16_t scale : linear.scale) {
    if (!std::isfinite(Float16Value(scale))) {
      return absl::InvalidArgumentError(StrCat(problem.name, ": scale beyond fp16"));
    }
  }
  linear.packed = PackCodes(codes, rows, columns, problem.bits);
  return linear;
}

}  // namespace gradq
