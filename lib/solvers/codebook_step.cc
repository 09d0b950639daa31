#include "lib/solvers/codebook_step.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lib/format/packing.h"

namespace gradq {
namespace {

// Of the mean diagonal of PᵀHP over used codewords; about the rounding error of fp32 sums.
constexpr double kCodebookRidge = 1e-7;

// Cholesky factor in place; false at a pivot that is not positive.
bool Factor(std::span<double> a, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[i * n + j];
      for (size_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      if (i != j) {
        a[i * n + j] = sum / a[j * n + j];
      } else if (sum > 0.0) {
        a[i * n + i] = std::sqrt(sum);
      } else {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

void SortByCode(std::span<const uint8_t> codes, int levels, std::vector<int32_t>* order,
                std::vector<int32_t>* begin) {
  begin->assign(levels + 1, 0);
  for (const uint8_t code : codes) ++(*begin)[code + 1];
  for (int q = 0; q < levels; ++q) (*begin)[q + 1] += (*begin)[q];
  std::array<int32_t, 256> next;
  std::copy_n(begin->begin(), levels, next.begin());
  for (size_t j = 0; j < codes.size(); ++j) (*order)[next[codes[j]]++] = static_cast<int32_t>(j);
}

void CorrectCodebook(std::span<double> gram, std::span<const double> slope,
                     std::span<double> centers) {
  const size_t n = centers.size();
  double trace = 0.0;
  size_t used = 0;
  for (size_t q = 0; q < n; ++q) {
    trace += gram[q * n + q];
    used += gram[q * n + q] != 0.0;
  }
  if (used == 0 || !(trace > 0.0)) return;
  const double mean = trace / static_cast<double>(used);
  std::vector<double> factor(n * n);
  for (double ridge = kCodebookRidge; ridge < 1e3; ridge *= 10.0) {
    std::copy(gram.begin(), gram.end(), factor.begin());
    for (size_t q = 0; q < n; ++q) factor[q * n + q] += ridge * mean;
    if (!Factor(factor, n)) continue;
    std::vector<double> x(slope.begin(), slope.end());
    for (size_t i = 0; i < n; ++i) {
      for (size_t k = 0; k < i; ++k) x[i] -= factor[i * n + k] * x[k];
      x[i] /= factor[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
      for (size_t k = i + 1; k < n; ++k) x[i] -= factor[k * n + i] * x[k];
      x[i] /= factor[i * n + i];
    }
    for (size_t q = 0; q < n; ++q) centers[q] -= x[q];
    return;
  }
}

void AssignNearest(std::span<const float> weights, std::span<const float> table,
                   std::span<uint8_t> codes) {
  std::array<float, 256> midpoint;
  const size_t midpoints = table.size() - 1;
  for (size_t q = 0; q < midpoints; ++q) midpoint[q] = 0.5f * (table[q] + table[q + 1]);
  for (size_t j = 0; j < weights.size(); ++j) {
    codes[j] = static_cast<uint8_t>(
        std::lower_bound(midpoint.begin(), midpoint.begin() + midpoints, weights[j]) -
        midpoint.begin());
  }
}

void StoreRow(std::span<const float> table, std::span<const uint8_t> codes,
              std::span<uint16_t> stored_table, std::span<uint8_t> stored_codes) {
  std::array<bool, 256> used{};
  for (const uint8_t code : codes) used[code] = true;
  std::array<uint8_t, 256> place{};
  int count = 0;
  for (size_t q = 0; q < table.size(); ++q) {
    if (!used[q]) continue;
    // + 0: the bits of -0 and 0 differ, their values don't.
    const uint16_t bits = Float16Bits(table[q] + 0.0f);
    if (count == 0 || stored_table[count - 1] != bits) stored_table[count++] = bits;
    place[q] = static_cast<uint8_t>(count - 1);
  }
  std::fill(stored_table.begin() + count, stored_table.end(), stored_table[count - 1]);
  for (size_t j = 0; j < codes.size(); ++j) stored_codes[j] = place[codes[j]];
}

}  // namespace gradq
