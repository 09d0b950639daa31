// The codebook step of CoupledDescent: row after row, the minimiser of E_a over the row's codewords
// while everything else stands still.

#include <algorithm>
#include <numeric>

#include "lib/base/thread_pool.h"
#include "lib/solvers/codebook_step.h"
#include "lib/solvers/coupled_descent.h"

namespace gradq {

using kernels::kCoupledTile;

// PᵀM and a · PᵀN_k of `row`, P its one-hot assignment without weights kept apart: [levels,
// columns] each, at `place` of walk.sums.
void CoupledDescent::SumBuckets(Walk& walk, int64_t row, int64_t place) const {
  const int64_t parts = walk.own.empty() ? 1 : 2, size = levels_ * columns_;
  float* sums = walk.sums.data() + place * parts * size;
  std::vector<float> active;
  if (apart_ != nullptr) {
    active.resize(columns_);
    for (int64_t i = 0; i < columns_; ++i) active[i] = apart_[row * columns_ + i] == 0;
  }
  std::vector<int32_t> order(columns_), begin;
  SortByCode({walk.codes.data() + row * columns_, static_cast<size_t>(columns_)}, active, levels_,
             &order, &begin);
  for (int q = 0; q < levels_; ++q) {
    const int count = begin[q + 1] - begin[q];
    kernels::SumRows(model_.shared.data(), columns_, order.data() + begin[q], count, columns_,
                     sums + q * columns_);
    if (parts == 1) continue;
    float* own = sums + size + q * columns_;
    kernels::SumRows(model_.own[model_.groups.group_of(row)].data(), columns_,
                     order.data() + begin[q], count, columns_, own);
    for (int64_t i = 0; i < columns_; ++i) own[i] *= walk.shrinkage;
  }
}

// True when the row's codebook moved; needs its gradient and sums.
bool CoupledDescent::CorrectRow(Walk& walk, int64_t row, int64_t place) const {
  const bool single = walk.own.empty();
  const int64_t size = levels_ * columns_, at = row * columns_;
  const float* shared = walk.sums.data() + place * (single ? 1 : 2) * size;
  const float* own = shared + size;
  const double diagonal = model_.diagonal(row);
  uint8_t* codes = walk.codes.data() + at;
  std::vector<double> gram(levels_ * levels_), slope(levels_), centers(levels_);
  for (int64_t i = 0; i < columns_; ++i) {
    if (apart_ != nullptr && apart_[at + i] != 0) continue;
    slope[codes[i]] += walk.gradient[at + i];
    for (int q = 0; q < levels_; ++q) {
      const double sum = shared[q * columns_ + i] + (single ? 0.0f : own[q * columns_ + i]);
      gram[q * levels_ + codes[i]] += diagonal * sum;
    }
  }
  float* table = walk.table.data() + row * levels_;
  std::copy_n(table, levels_, centers.begin());
  CorrectCodebook(gram, slope, CodebookRidge::kRelative, centers);
  std::vector<float> step(levels_), moved(levels_);
  for (int q = 0; q < levels_; ++q) {
    moved[q] = static_cast<float>(centers[q]);
    step[q] = moved[q] - table[q];
  }
  for (int64_t i = 0; i < columns_; ++i) {
    const bool apart = apart_ != nullptr && apart_[at + i] != 0;
    walk.change[at + i] = apart ? 0.0f : step[codes[i]];
  }
  std::fill_n(walk.change_product.data() + at, columns_, 0.0f);
  if (!single) std::fill_n(walk.change_own.data() + at, columns_, 0.0f);
  for (int q = 0; q < levels_; ++q) {
    kernels::AddScaled(step[q], shared + q * columns_, columns_, walk.change_product.data() + at);
    if (!single)
      kernels::AddScaled(step[q], own + q * columns_, columns_, walk.change_own.data() + at);
  }
  if (!(Gain(walk, row) < 0.0)) return false;
  // Ascending again, where codewords changed places.
  std::vector<int> order(levels_);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return moved[a] < moved[b]; });
  std::vector<uint8_t> place_of(levels_);
  for (int q = 0; q < levels_; ++q) {
    table[q] = moved[order[q]];
    place_of[order[q]] = static_cast<uint8_t>(q);
  }
  for (int64_t i = 0; i < columns_; ++i) codes[i] = place_of[codes[i]];
  return true;
}

// Needs the gradients.
void CoupledDescent::CorrectCodebooks(Walk& walk) const {
  const int64_t parts = walk.own.empty() ? 1 : 2;
  walk.sums.resize(kCoupledTile * parts * levels_ * columns_);
  for (int64_t block = 0; block < tiles(rows_); ++block) {
    const int64_t first = block * kCoupledTile, end = std::min(first + kCoupledTile, rows_);
    ForItems(walk, end - first,
             [&](int64_t place, int) { SumBuckets(walk, first + place, place); });
    bool corrected = false;
    for (int64_t row = first; row < end; ++row) {
      if (CorrectRow(walk, row, row - first)) {
        TakeRow(walk, row, end);
        corrected = true;
      } else {
        std::fill_n(walk.change_product.data() + row * columns_, columns_, 0.0f);
      }
    }
    if (corrected) SpreadBlock(walk, block);
  }
}

}  // namespace gradq
