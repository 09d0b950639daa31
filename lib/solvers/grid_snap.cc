#include "lib/solvers/grid_snap.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/kernels/codebook_sums.h"
#include "lib/kernels/coordinate_descent.h"
#include "lib/solvers/codebook_step.h"
#include "lib/solvers/row_tiles.h"

namespace gradq {
namespace {

using kernels::kTileRows;

// Scales tried per row, as factors of the one whose grid just covers the codewords.
constexpr int kScales = 200;
constexpr double kSmallestFactor = 0.8;
constexpr double kLargestFactor = 2.4;
// Passes over the codewords, each moved by a step where that lowers the cost.
constexpr int kRefinements = 4;
// Moves of the codebook, each followed by a new assignment.
constexpr int kIterations = 3;
constexpr int kCycles = 8;
constexpr double kLargestHalf = 65504.0;

double HalfValue(uint16_t bits) { return static_cast<double>(Float16Value(bits)); }

// Ascending grid codes without repetition near the roundings of `target`.
void RoundDistinct(std::span<const double> target, double scale, int zero, int top,
                   std::span<int> codes) {
  const size_t n = target.size();
  for (size_t q = 0; q < n; ++q) {
    const double place = std::clamp(std::nearbyint(target[q] / scale) + zero, 0.0, double(top));
    codes[q] = static_cast<int>(place);
    if (q > 0) codes[q] = std::max(codes[q], codes[q - 1] + 1);
  }
  for (size_t q = n; q-- > 0;) codes[q] = std::min(codes[q], q + 1 == n ? top : codes[q + 1] - 1);
}

// The cost of moving codewords by d, and moves of single ones by a step.
class MoveCost {
 public:
  MoveCost(std::span<const double> gram, std::span<const double> slope, size_t n)
      : gram_(gram), slope_(slope), n_(n), move_(n), pull_(n) {}

  void Set(std::span<const double> table, std::span<const int> codes, double scale, int zero) {
    for (size_t q = 0; q < n_; ++q) move_[q] = (codes[q] - zero) * scale - table[q];
    for (size_t q = 0; q < n_; ++q) {
      double sum = slope_[q];
      for (size_t p = 0; p < n_; ++p) sum += gram_[q * n_ + p] * move_[p];
      pull_[q] = sum;
    }
  }
  double Cost() const {
    double sum = 0;
    for (size_t q = 0; q < n_; ++q) sum += move_[q] * (pull_[q] + slope_[q]);
    return sum;
  }
  // The scale for which these codes cost least.
  double BestScale(std::span<const double> table, std::span<const int> codes, int zero) const {
    double pull = 0, curvature = 0;
    for (size_t q = 0; q < n_; ++q) {
      double goal = -slope_[q], steps = 0;
      for (size_t p = 0; p < n_; ++p) {
        goal += gram_[q * n_ + p] * table[p];
        steps += gram_[q * n_ + p] * (codes[p] - zero);
      }
      pull += (codes[q] - zero) * goal;
      curvature += (codes[q] - zero) * steps;
    }
    return curvature > 0 ? pull / curvature : 0;
  }
  // Change of the cost when codeword q moves by `step` more.
  double Change(size_t q, double step) const {
    return step * (2 * pull_[q] + step * gram_[q * n_ + q]);
  }
  void Move(size_t q, double step) {
    move_[q] += step;
    for (size_t p = 0; p < n_; ++p) pull_[p] += gram_[p * n_ + q] * step;
  }

 private:
  std::span<const double> gram_, slope_;
  size_t n_;
  std::vector<double> move_, pull_;
};

// Moves single codewords along the grid while that lowers the cost.
void Refine(double scale, int top, std::span<int> codes, MoveCost* cost) {
  for (int pass = 0; pass < kRefinements; ++pass) {
    bool moved = false;
    for (size_t q = 0; q < codes.size(); ++q) {
      for (const int step : {-1, 1}) {
        const int to = codes[q] + step;
        const bool room = to >= 0 && to <= top && (q == 0 || to > codes[q - 1]) &&
                          (q + 1 == codes.size() || to < codes[q + 1]);
        if (!room || !(cost->Change(q, step * scale) < 0)) continue;
        cost->Move(q, step * scale);
        codes[q] = to;
        moved = true;
        break;
      }
    }
    if (!moved) return;
  }
}

struct Matrices {
  // H per group, or one for all; empty: each row has its own diagonal.
  std::vector<at::Tensor> full;
  std::vector<kernels::PanelMatrix> panels;
  std::vector<std::vector<float>> inverse_diagonal;
  const float* diagonal = nullptr;  // fisher_diagonal [rows, columns]

  size_t Of(int group) const { return full.size() == 1 ? 0 : group; }
};

absl::StatusOr<Matrices> MatricesOf(const LayerProblem& problem) {
  Matrices matrices;
  if (problem.objective == Objective::kPlain && problem.gram.defined()) {
    matrices.full = {problem.gram};
  } else {
    matrices.full = problem.fisher_blocks;
  }
  if (matrices.full.empty()) {
    if (!problem.fisher_diagonal.defined()) {
      return absl::InvalidArgumentError(
          StrCat(problem.name, ": no statistic to solve on a grid with"));
    }
    matrices.diagonal = problem.fisher_diagonal.const_data_ptr<float>();
  }
  const int64_t columns = problem.weight.size(1);
  for (const at::Tensor& matrix : matrices.full) {
    const float* h = matrix.const_data_ptr<float>();
    matrices.panels.emplace_back(h, columns);
    std::vector<float>& inverse = matrices.inverse_diagonal.emplace_back(columns);
    for (int64_t j = 0; j < columns; ++j) {
      const float diagonal = h[j * columns + j];
      inverse[j] = diagonal > 0 ? 1 / diagonal : 0.0f;
    }
  }
  return matrices;
}

// Up to 32 rows of one group on their grids.
class GridTile {
 public:
  GridTile(const LayerProblem& problem, const QuantizedLinear& lut, const Matrices& matrices,
           int grid_bits)
      : problem_(problem),
        lut_(lut),
        matrices_(matrices),
        grid_bits_(grid_bits),
        columns_(problem.weight.size(1)),
        levels_(1 << lut.bits),
        storage_((6 * columns_ + 3 * levels_) * kTileRows),
        codes_(columns_ * kTileRows),
        row_codes_(columns_),
        row_error_(columns_),
        row_active_(columns_),
        order_(columns_),
        scratch_(levels_ * kernels::kCodebookChunk) {
    float* next = storage_.data();
    const auto take = [&](int64_t length) {
      return std::exchange(next, next + length * kTileRows);
    };
    weight_ = take(columns_);
    active_ = take(columns_);
    error_ = take(columns_);
    best_error_ = take(columns_);
    quantized_ = take(columns_);
    importance_ = take(columns_);
    table_ = take(levels_);
    best_table_ = take(levels_);
    midpoint_ = take(levels_);
  }

  // Grid codes go to codes[row · columns], scales, zero points and δᵀHδ to scale[row], zero[row],
  // form[row].
  void Solve(const RowRange& range, uint8_t* codes, uint16_t* scale, uint8_t* zero, double* form) {
    Load(range);
    std::array<double, kTileRows> best_form;
    best_form.fill(std::numeric_limits<double>::infinity());
    std::array<RowGrid, kTileRows> best_grid;
    for (int iteration = 0; iteration < kIterations; ++iteration) {
      std::array<RowGrid, kTileRows> grid;
      for (int row = 0; row < range.rows; ++row) grid[row] = SnapRow(range, row);
      Reassign(range.group);
      double forms[kTileRows];
      Forms(range, forms);
      bool improved = false;
      for (int row = 0; row < range.rows; ++row) {
        if (!(forms[row] < best_form[row])) continue;
        improved = true;
        best_form[row] = forms[row];
        best_grid[row] = grid[row];
        CopyRow(row);
      }
      if (!improved) break;
    }
    for (int row = 0; row < range.rows; ++row) {
      scale[row] = best_grid[row].scale;
      zero[row] = static_cast<uint8_t>(best_grid[row].zero);
      form[row] = best_form[row];
      const float step = Float16Value(best_grid[row].scale);
      for (int64_t j = 0; j < columns_; ++j)
        codes[row * columns_ + j] = GridCode(j, row, step, best_grid[row].zero);
    }
  }

 private:
  // Weights, mask and the LUT's solution, whose codewords stand in table_ and codes in codes_.
  void Load(const RowRange& range) {
    const float* weight = problem_.weight.const_data_ptr<float>();
    const int64_t words = PackedWords(columns_, lut_.bits);
    const bool masked = !problem_.apart.empty();
    std::fill_n(storage_.data(), (6 * columns_ + 3 * levels_) * kTileRows, 0.0f);
    std::fill(codes_.begin(), codes_.end(), uint8_t{0});
    for (int row = 0; row < range.rows; ++row) {
      const int64_t r = range.first + row;
      UnpackRow(std::span(lut_.packed).subspan(r * words, words), lut_.bits, row_codes_);
      for (int q = 0; q < levels_; ++q)
        table_[q * kTileRows + row] = Float16Value(lut_.lut[r * levels_ + q]);
      for (int64_t j = 0; j < columns_; ++j) {
        const int64_t at = j * kTileRows + row;
        weight_[at] = weight[r * columns_ + j];
        active_[at] = masked && problem_.apart[r * columns_ + j] != 0 ? 0.0f : 1.0f;
        codes_[at] = row_codes_[j];
        error_[at] = active_[at] * (table_[row_codes_[j] * kTileRows + row] - weight_[at]);
        if (matrices_.diagonal != nullptr)
          importance_[at] = active_[at] * matrices_.diagonal[r * columns_ + j];
      }
    }
  }

  kernels::RowTile View() {
    for (int i = 0; i < (levels_ - 1) * kTileRows; ++i)
      midpoint_[i] = 0.5f * (table_[i] + table_[i + kTileRows]);
    return {weight_, error_,    levels_,
            table_,  midpoint_, problem_.apart.empty() ? nullptr : active_};
  }

  // PᵀHP and PᵀH(ŵ − w) of a row's current codes.
  void Sums(const RowRange& range, int row, std::span<double> gram, std::span<double> slope) {
    for (int64_t j = 0; j < columns_; ++j) {
      const int64_t at = j * kTileRows + row;
      row_codes_[j] = codes_[at];
      row_error_[j] = error_[at];
      row_active_[j] = active_[at];
    }
    if (matrices_.diagonal != nullptr) {
      std::fill(gram.begin(), gram.end(), 0.0);
      std::fill(slope.begin(), slope.end(), 0.0);
      for (int64_t j = 0; j < columns_; ++j) {
        const double importance = importance_[j * kTileRows + row];
        gram[row_codes_[j] * (levels_ + 1)] += importance;
        slope[row_codes_[j]] += importance * row_error_[j];
      }
      return;
    }
    SortByCode(row_codes_, row_active_, levels_, &order_, &begin_);
    kernels::CodebookSums(matrices_.full[matrices_.Of(range.group)].const_data_ptr<float>(),
                          columns_, order_.data(), begin_.data(), row_codes_.data(),
                          row_error_.data(), problem_.apart.empty() ? nullptr : row_active_.data(),
                          levels_, scratch_.data(), gram.data(), slope.data());
  }

  // Moves the row's codewords to a grid; its codes stay. Equal codewords are one.
  RowGrid SnapRow(const RowRange& range, int row) {
    std::vector<double> gram(levels_ * levels_), slope(levels_);
    Sums(range, row, gram, slope);
    std::vector<int> place(levels_);  // of each codeword among the distinct ones
    std::vector<double> table;
    for (int q = 0; q < levels_; ++q) {
      const double value = table_[q * kTileRows + row];
      if (table.empty() || value != table.back()) table.push_back(value);
      place[q] = static_cast<int>(table.size()) - 1;
    }
    const size_t n = table.size();
    std::vector<double> merged(n * n), pull(n);
    for (int q = 0; q < levels_; ++q) {
      pull[place[q]] += slope[q];
      for (int p = 0; p < levels_; ++p) merged[place[q] * n + place[p]] += gram[q * levels_ + p];
    }
    std::vector<double> target = table;
    CorrectCodebook(merged, pull, CodebookRidge::kRelative, target);
    std::sort(target.begin(), target.end());
    std::vector<uint8_t> codes(n);
    const RowGrid grid = FitRowGrid(table, target, merged, pull, grid_bits_, codes);
    const float scale = Float16Value(grid.scale);
    for (int q = 0; q < levels_; ++q) {
      table_[q * kTileRows + row] =
          static_cast<float>(static_cast<int>(codes[place[q]]) - grid.zero) * scale;
    }
    for (int64_t j = 0; j < columns_; ++j) {
      const int64_t at = j * kTileRows + row;
      error_[at] = active_[at] * (table_[codes_[at] * kTileRows + row] - weight_[at]);
    }
    return grid;
  }

  // Assignments to the codewords as they are now; codes_ follows.
  void Reassign(int group) {
    const kernels::RowTile view = View();
    if (matrices_.diagonal != nullptr) {
      kernels::RoundToNearest(columns_, view, nullptr, codes_.data());
      return;
    }
    const size_t k = matrices_.Of(group);
    for (int cycle = 0; cycle < kCycles; ++cycle) {
      if (!kernels::CoordinateDescentCycle(matrices_.panels[k],
                                           matrices_.inverse_diagonal[k].data(), view, nullptr)) {
        break;
      }
    }
    for (int64_t i = 0; i < columns_ * kTileRows; ++i) quantized_[i] = weight_[i] + error_[i];
    kernels::RoundToNearest(columns_, view, quantized_, codes_.data());
  }

  void Forms(const RowRange& range, double* forms) const {
    if (matrices_.diagonal == nullptr) {
      kernels::ExactQuadraticForms(matrices_.panels[matrices_.Of(range.group)], error_, forms);
      return;
    }
    std::fill_n(forms, kTileRows, 0.0);
    for (int64_t i = 0; i < columns_ * kTileRows; ++i)
      forms[i % kTileRows] += static_cast<double>(importance_[i]) * error_[i] * error_[i];
  }

  void CopyRow(int row) {
    for (int64_t i = row; i < columns_ * kTileRows; i += kTileRows) best_error_[i] = error_[i];
    for (int i = row; i < levels_ * kTileRows; i += kTileRows) best_table_[i] = table_[i];
  }

  // Of the best solution; a weight kept apart takes the codeword nearest to it.
  uint8_t GridCode(int64_t column, int row, float scale, int zero) const {
    const int64_t at = column * kTileRows + row;
    const float value = weight_[at] + best_error_[at];
    float nearest = best_table_[row];
    for (int q = 1; q < levels_; ++q) {
      const float candidate = best_table_[q * kTileRows + row];
      if (std::fabs(candidate - value) < std::fabs(nearest - value)) nearest = candidate;
    }
    return static_cast<uint8_t>(std::lround(nearest / scale) + zero);
  }

  const LayerProblem& problem_;
  const QuantizedLinear& lut_;
  const Matrices& matrices_;
  int grid_bits_;
  int64_t columns_;
  int levels_;
  kernels::AlignedFloats storage_;
  // [columns][32], the last three [levels][32].
  float *weight_, *active_, *error_, *best_error_, *quantized_, *importance_;
  float *table_, *best_table_, *midpoint_;
  std::vector<uint8_t> codes_;
  std::vector<uint8_t> row_codes_;
  std::vector<float> row_error_, row_active_;
  std::vector<int32_t> order_, begin_;
  std::vector<float> scratch_;
};

}  // namespace

RowGrid FitRowGrid(std::span<const double> table, std::span<const double> target,
                   std::span<const double> gram, std::span<const double> slope, int grid_bits,
                   std::span<uint8_t> codes) {
  const size_t n = table.size();
  const int top = (1 << grid_bits) - 1;
  GRADQ_CHECK(n >= 1 && static_cast<int>(n) <= top + 1);
  const double low = std::min(0.0, target.front()), high = std::max(0.0, target.back());
  // A single codeword is the scale itself; of zeros alone any will do.
  const double cover = n == 1 ? std::max(high, -low) : (high - low) / top;
  RowGrid best{.scale = Float16Bits(1.0f), .zero = 0, .cost = 0};
  std::fill(codes.begin(), codes.end(), uint8_t{0});
  if (cover == 0) return best;
  best.cost = std::numeric_limits<double>::infinity();
  MoveCost cost(gram, slope, n);
  std::vector<int> trial(n);
  uint16_t last = 0;
  for (int i = 0; i < kScales; ++i) {
    const double factor =
        kSmallestFactor * std::pow(kLargestFactor / kSmallestFactor, i / double(kScales - 1));
    const auto bits = std::max<uint16_t>(Float16Bits(static_cast<float>(cover * factor)), 1);
    if (bits == last || HalfValue(bits) > kLargestHalf) continue;
    last = bits;
    const double scale = HalfValue(bits);
    // The codewords in the middle of the codes.
    const double middle = top / 2.0 - (target.front() + target.back()) / (2 * scale);
    const int zero = static_cast<int>(std::clamp(std::nearbyint(middle), 0.0, double(top)));
    RoundDistinct(target, scale, zero, top, trial);
    cost.Set(table, trial, scale, zero);
    Refine(scale, top, trial, &cost);
    // The scale that suits these codes, beside the one they were found with.
    const double suits = cost.BestScale(table, trial, zero);
    for (const double value : {scale, suits}) {
      const uint16_t half = Float16Bits(static_cast<float>(value));
      if (!(HalfValue(half) > 0) || HalfValue(half) > kLargestHalf) continue;
      cost.Set(table, trial, HalfValue(half), zero);
      const double total = cost.Cost();
      if (!(total < best.cost)) continue;
      best = {.scale = half, .zero = zero, .cost = total};
      std::copy(trial.begin(), trial.end(), codes.begin());
    }
  }
  return best;
}

absl::StatusOr<QuantizedLinear> SnapToGrid(const LayerProblem& problem, const QuantizedLinear& lut,
                                           int grid_bits, const SolveContext& context) {
  GRADQ_CHECK(lut.encoding == Encoding::kLut);
  if (grid_bits < lut.bits) {
    return absl::InvalidArgumentError(
        StrCat(problem.name, ": grid has fewer points than the codebooks: grid_bits ", grid_bits,
               ", bits ", lut.bits));
  }
  GRADQ_ASSIGN_OR_RETURN(const Matrices matrices, MatricesOf(problem));
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  QuantizedLinear linear = lut;
  linear.encoding = Encoding::kAffine;
  linear.bits = grid_bits;
  linear.lut.clear();
  linear.group_size = columns;
  linear.scale.resize(rows);
  linear.zero_point.resize(rows);
  std::vector<uint8_t> codes(rows * columns);
  std::vector<double> forms(rows);
  const std::vector<RowRange> ranges = CutRows(problem.groups);
  std::vector<std::unique_ptr<GridTile>> tiles(context.pool->threads());
  std::atomic<bool> cancelled = false;
  context.pool->ParallelFor(static_cast<int64_t>(ranges.size()), [&](int64_t index, int worker) {
    if (cancelled.load() || (context.cancelled && context.cancelled())) {
      cancelled = true;
      return;
    }
    const RowRange& range = ranges[index];
    if (tiles[worker] == nullptr)
      tiles[worker] = std::make_unique<GridTile>(problem, lut, matrices, grid_bits);
    tiles[worker]->Solve(range, codes.data() + range.first * columns,
                         linear.scale.data() + range.first, linear.zero_point.data() + range.first,
                         forms.data() + range.first);
  });
  if (cancelled) return absl::CancelledError(StrCat(problem.name, ": solve cancelled"));
  linear.packed = PackCodes(codes, rows, columns, grid_bits);
  linear.record.numbers["codebook_bits"] = lut.bits;
  if (lut.record.objective_final)
    linear.record.numbers["objective_before_grid"] = *lut.record.objective_final;
  linear.record.objective_final.reset();
  if (matrices.diagonal == nullptr && problem.objective != Objective::kCoupled)
    linear.record.objective_final = SumOfGroupMeans(problem.groups, forms);
  return linear;
}

}  // namespace gradq
