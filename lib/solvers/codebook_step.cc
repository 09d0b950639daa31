#include "lib/solvers/codebook_step.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lib/format/packing.h"
#include "lib/kernels/codebook_sums.h"
#include "lib/kernels/coordinate_descent.h"

namespace gradq {
namespace {

// Of the mean diagonal of PᵀHP over used codewords; about the rounding error of fp32 sums.
constexpr double kCodebookRidge = 1e-7;
constexpr double kPublishedRidge = 1e-7;

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

void SortByCode(std::span<const uint8_t> codes, std::span<const float> active, int levels,
                std::vector<int32_t>* order, std::vector<int32_t>* begin) {
  const auto counts = [&](size_t j) { return active.empty() || active[j] != 0.0f; };
  begin->assign(levels + 1, 0);
  for (size_t j = 0; j < codes.size(); ++j) {
    if (counts(j)) ++(*begin)[codes[j] + 1];
  }
  for (int q = 0; q < levels; ++q) (*begin)[q + 1] += (*begin)[q];
  std::array<int32_t, 256> next;
  std::copy_n(begin->begin(), levels, next.begin());
  for (size_t j = 0; j < codes.size(); ++j) {
    if (counts(j)) (*order)[next[codes[j]]++] = static_cast<int32_t>(j);
  }
}

void CorrectCodebook(std::span<const double> gram, std::span<const double> slope,
                     CodebookRidge ridge, std::span<double> centers) {
  const size_t n = centers.size();
  double trace = 0.0;
  size_t used = 0;
  for (size_t q = 0; q < n; ++q) {
    trace += gram[q * n + q];
    used += gram[q * n + q] != 0.0;
  }
  if (used == 0 || !(trace > 0.0)) return;
  const double mean = trace / static_cast<double>(used);
  const bool published = ridge == CodebookRidge::kPublished;
  std::vector<double> factor(n * n);
  std::vector<double> x(n);
  for (double lambda = published ? kPublishedRidge : kCodebookRidge * mean; lambda < 1e3 * mean;
       lambda *= 10.0) {
    std::copy(gram.begin(), gram.end(), factor.begin());
    for (size_t q = 0; q < n; ++q) factor[q * n + q] += lambda;
    if (!Factor(factor, n)) continue;
    for (size_t q = 0; q < n; ++q) x[q] = slope[q] + (published ? lambda * centers[q] : 0.0);
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

RowCodebookStep::RowCodebookStep(int64_t columns, int levels)
    : columns_(columns),
      levels_(levels),
      codes_(columns),
      error_(columns),
      scratch_(levels * kernels::kCodebookChunk),
      order_(columns),
      centers_(levels),
      gram_(levels * levels),
      slope_(levels) {}

void RowCodebookStep::Update(const float* h, int row, const float* weight, const uint8_t* codes,
                             CodebookRidge ridge, float* error, float* table, const float* active) {
  using kernels::kTileRows;
  active_.resize(active == nullptr ? 0 : columns_);
  for (int64_t j = 0; j < columns_; ++j) {
    codes_[j] = codes[j * kTileRows + row];
    error_[j] = error[j * kTileRows + row];
    if (active != nullptr) active_[j] = active[j * kTileRows + row];
  }
  SortByCode(codes_, active_, levels_, &order_, &begin_);
  kernels::CodebookSums(h, columns_, order_.data(), begin_.data(), codes_.data(), error_.data(),
                        active == nullptr ? nullptr : active_.data(), levels_, scratch_.data(),
                        gram_.data(), slope_.data());
  for (int q = 0; q < levels_; ++q) centers_[q] = table[q * kTileRows + row];
  CorrectCodebook(gram_, slope_, ridge, centers_);
  for (int64_t j = 0; j < columns_; ++j) {
    if (active != nullptr && active_[j] == 0.0f) continue;
    error[j * kTileRows + row] =
        static_cast<float>(centers_[codes_[j]]) - weight[j * kTileRows + row];
  }
  std::sort(centers_.begin(), centers_.end());
  for (int q = 0; q < levels_; ++q) {
    table[q * kTileRows + row] = static_cast<float>(centers_[q]);
  }
}

void ImportanceWithout(std::span<const uint8_t> apart, std::span<const float> importance,
                       std::span<float> result) {
  bool any = false;
  for (size_t j = 0; j < apart.size(); ++j) {
    result[j] = apart[j] != 0 ? 0.0f : importance[j];
    any |= result[j] > 0.0f;
  }
  for (size_t j = 0; !any && j < apart.size(); ++j) result[j] = apart[j] != 0 ? 0.0f : 1.0f;
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

void AssignApart(std::span<const uint8_t> apart, std::span<const float> weights,
                 std::span<const float> table, std::span<uint8_t> codes) {
  for (size_t j = 0; j < apart.size(); ++j) {
    if (apart[j] != 0) AssignNearest(weights.subspan(j, 1), table, codes.subspan(j, 1));
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
