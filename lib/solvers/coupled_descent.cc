#include "lib/solvers/coupled_descent.h"

#include <algorithm>
#include <cmath>

#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/solvers/codebook_step.h"

namespace gradq {
namespace {

using kernels::kCoupledTile;
using kernels::kTileRows;

static_assert(kCoupledTile == kTileRows);

// Coordinate-descent cycles that follow a proposed rounding.
constexpr int kProposalCycles = 2;
// From this many weights on, one walk's tiles are enough work for all threads; below, they would
// mostly wait for each other.
constexpr int64_t kLargeLinear = int64_t{1} << 22;
// A proposed row must be better than the current one by more than the rounding errors of fp32.
constexpr double kProposalMargin = 1e-6;

}  // namespace

// One thread's tile in the layout of the row-tile kernels, [columns][32] and [levels][32].
struct CoupledDescent::Workspace {
  kernels::AlignedFloats storage;
  float* target = nullptr;
  float* error = nullptr;
  float* active = nullptr;
  float* table = nullptr;
  float* midpoint = nullptr;
  std::vector<float> shift;  // [32, columns]
};

CoupledDescent::CoupledDescent(const CoupledModel& model, const float* weight, const uint8_t* apart,
                               int levels, const SolveContext& context)
    : model_(model),
      weight_(weight),
      apart_(apart),
      levels_(levels),
      context_(context),
      rows_(model.rows),
      columns_(model.columns),
      workspaces_(context.pool->threads()) {
  const int64_t panel = columns_ * kTileRows, tables = static_cast<int64_t>(levels) * kTileRows;
  for (Workspace& work : workspaces_) {
    work.storage = kernels::AlignedFloats(3 * panel + 2 * tables);
    float* next = work.storage.data();
    for (float** buffer : {&work.target, &work.error, &work.active}) {
      *buffer = next;
      next += panel;
    }
    work.table = next;
    work.midpoint = next + tables;
    work.shift.resize(panel);
  }
}

CoupledDescent::~CoupledDescent() = default;

void CoupledDescent::ForItems(const Walk& walk, int64_t items,
                              absl::FunctionRef<void(int64_t item, int worker)> body) const {
  if (walk.worker < 0) return context_.pool->ParallelFor(items, body);
  for (int64_t item = 0; item < items; ++item) body(item, walk.worker);
}

// Everything the walks of all shrinkages start with.
void CoupledDescent::Start(std::span<const uint8_t> codes, std::span<const uint16_t> table) {
  const int64_t size = rows_ * columns_;
  start_ = {};
  start_.codes.assign(codes.begin(), codes.end());
  start_.table.resize(table.size());
  for (size_t i = 0; i < table.size(); ++i) start_.table[i] = Float16Value(table[i]);
  start_.shrinkage = 1;
  start_.error.resize(size);
  start_.product.resize(size);
  start_.gradient.resize(size);
  if (!model_.own.empty()) start_.own.resize(size);
  Multiply(start_);
}

void CoupledDescent::Begin(double shrinkage, Walk* walk) const {
  const int64_t size = rows_ * columns_;
  walk->shrinkage = static_cast<float>(shrinkage);
  walk->codes = start_.codes;
  walk->table = start_.table;
  walk->error = start_.error;
  walk->product = start_.product;
  walk->own = start_.own;
  for (float& value : walk->own) value *= walk->shrinkage;
  walk->gradient.resize(size);
  walk->change.resize(size);
  walk->change_product.resize(size);
  walk->change_own.resize(walk->own.size());
  walk->change_codes.resize(size);
  walk->proposed.resize(rows_);
  walk->tile_changes.resize(tiles(rows_));
}

void CoupledDescent::ErrorsOfCodes(Walk& walk, int64_t row) const {
  const float* table = walk.table.data() + row * levels_;
  for (int64_t at = row * columns_; at < (row + 1) * columns_; ++at) {
    const bool apart = apart_ != nullptr && apart_[at] != 0;
    walk.error[at] = apart ? 0.0f : table[walk.codes[at]] - weight_[at];
  }
}

void CoupledDescent::MultiplyRows(const Walk& walk, int64_t first, int64_t count,
                                  const float* change, float* product, float* own) const {
  kernels::MultiplyAdd(change, columns_, model_.shared.data(), columns_, count, columns_, columns_,
                       /*accumulate=*/false, product, columns_);
  if (model_.own.empty()) return;
  // Runs of rows of one group.
  for (int64_t row = first; row < first + count;) {
    const int group = model_.groups.group_of(row);
    const int64_t end = std::min(first + count, model_.groups.begin(group + 1));
    const int64_t at = (row - first) * columns_;
    kernels::MultiplyAdd(change + at, columns_, model_.own[group].data(), columns_, end - row,
                         columns_, columns_, /*accumulate=*/false, own + at, columns_);
    for (int64_t i = at; i < (end - first) * columns_; ++i) own[i] *= walk.shrinkage;
    row = end;
  }
}

// Errors of the codes, and their products, anew.
void CoupledDescent::Multiply(Walk& walk) const {
  ForItems(walk, tiles(rows_), [&](int64_t tile, int) {
    const int64_t first = tile * kCoupledTile;
    const int64_t count = std::min<int64_t>(kCoupledTile, rows_ - first), at = first * columns_;
    for (int64_t row = first; row < first + count; ++row) ErrorsOfCodes(walk, row);
    MultiplyRows(walk, first, count, walk.error.data() + at, walk.product.data() + at,
                 walk.own.empty() ? nullptr : walk.own.data() + at);
  });
}

// Half the gradient, (1 − a) O Δ M + a diag(O) Δ M + diag(O) own.
void CoupledDescent::GradientRows(Walk& walk, int64_t first, int64_t count) const {
  float* gradient = walk.gradient.data() + first * columns_;
  kernels::MultiplyAdd(model_.output.data() + first * rows_, rows_, walk.product.data(), columns_,
                       count, rows_, columns_, /*accumulate=*/false, gradient, columns_);
  const float coupling = 1.0f - walk.shrinkage;
  for (int64_t row = 0; row < count; ++row) {
    const float diagonal = model_.diagonal(first + row);
    const float* product = walk.product.data() + (first + row) * columns_;
    const float* own = walk.own.empty() ? nullptr : walk.own.data() + (first + row) * columns_;
    float* line = gradient + row * columns_;
    for (int64_t i = 0; i < columns_; ++i) {
      line[i] = coupling * line[i] + walk.shrinkage * diagonal * product[i];
      if (own != nullptr) line[i] += diagonal * own[i];
    }
  }
}

void CoupledDescent::FillGradients(Walk& walk) const {
  ForItems(walk, tiles(rows_), [&](int64_t tile, int) {
    const int64_t first = tile * kCoupledTile;
    GradientRows(walk, first, std::min<int64_t>(kCoupledTile, rows_ - first));
  });
}

// E_a; fills in the gradients.
double CoupledDescent::Evaluate(Walk& walk) const {
  FillGradients(walk);
  double objective = 0.0;
  for (int64_t i = 0; i < rows_ * columns_; ++i)
    objective += static_cast<double>(walk.gradient[i]) * walk.error[i];
  return objective;
}

// Error-feedback roundings of the rows of one tile to their codebooks, on the moved target, where
// they are better than the current errors while the other rows stand still. M takes the place of a
// group's own matrix here, and weights kept apart count as without error on the moved target: what
// is taken is decided by E_a itself.
void CoupledDescent::ProposeTile(Walk& walk, int64_t first, const FeedbackOrder& order,
                                 Workspace& work) const {
  const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows_ - first));
  const int64_t panel = columns_ * kTileRows;
  float* shift = work.shift.data();
  kernels::MultiplyAdd(model_.output.data() + first * rows_, rows_, walk.error.data(), columns_,
                       count, rows_, columns_, /*accumulate=*/false, shift, columns_);
  std::fill_n(work.target, panel, 0.0f);
  std::fill_n(work.error, panel, 0.0f);
  std::fill_n(work.table, static_cast<int64_t>(levels_) * kTileRows, 0.0f);
  if (apart_ != nullptr) std::fill_n(work.active, panel, 1.0f);
  const float coupling = 1.0f - walk.shrinkage;
  for (int lane = 0; lane < count; ++lane) {
    const int64_t row = first + lane;
    const float diagonal = model_.diagonal(row);
    for (int q = 0; q < levels_; ++q)
      work.table[q * kTileRows + lane] = walk.table[row * levels_ + q];
    const float scale = diagonal > 0.0f ? coupling / diagonal : 0.0f;
    for (int64_t i = 0; i < columns_; ++i) {
      const int64_t at = row * columns_ + i, to = i * kTileRows + lane;
      const float moved = scale * (shift[lane * columns_ + i] - diagonal * walk.error[at]);
      work.target[to] = weight_[at] - moved;
      work.error[to] = walk.error[at] + moved;
      if (apart_ == nullptr || apart_[at] == 0) continue;
      work.active[to] = 0.0f;
      work.error[to] = 0.0f;
    }
  }
  for (int64_t i = 0; i < (levels_ - 1) * kTileRows; ++i)
    work.midpoint[i] = 0.5f * (work.table[i] + work.table[i + kTileRows]);
  const kernels::RowTile view{work.target,   work.error,
                              levels_,       work.table,
                              work.midpoint, apart_ == nullptr ? nullptr : work.active};
  const LnqGroup& group = *model_.feedback;
  double best[kTileRows], form[kTileRows];
  kernels::QuadraticForms(group.panels, work.error, best);
  kernels::ErrorFeedbackRounding(order.feedback, order.order.data(), view);
  for (int cycle = 0; cycle < kProposalCycles; ++cycle) {
    if (!kernels::CoordinateDescentCycle(group.panels, group.inverse_diagonal.data(), view,
                                         nullptr)) {
      break;
    }
  }
  kernels::QuadraticForms(group.panels, work.error, form);
  for (int lane = 0; lane < count; ++lane) {
    const int64_t row = first + lane;
    const bool improved =
        form[lane] < best[lane] - kProposalMargin * best[lane] && model_.diagonal(row) > 0.0f;
    walk.proposed[row] = improved;
    float* change = walk.change.data() + row * columns_;
    if (!improved) {
      std::fill_n(change, columns_, 0.0f);
      continue;
    }
    const float* table = walk.table.data() + row * levels_;
    for (int64_t i = 0; i < columns_; ++i) {
      const int64_t at = row * columns_ + i;
      const float value = work.target[i * kTileRows + lane] + work.error[i * kTileRows + lane];
      int code = 0;
      while (code + 1 < levels_ && value > work.midpoint[code * kTileRows + lane]) ++code;
      const bool apart = apart_ != nullptr && apart_[at] != 0;
      walk.change_codes[at] = apart ? walk.codes[at] : static_cast<uint8_t>(code);
      change[i] = apart ? 0.0f : table[code] - weight_[at] - walk.error[at];
    }
  }
}

void CoupledDescent::ProposeRoundings(Walk& walk, const FeedbackOrder& order) {
  ForItems(walk, tiles(rows_), [&](int64_t tile, int worker) {
    const int64_t first = tile * kCoupledTile;
    ProposeTile(walk, first, order, workspaces_[worker]);
    const int64_t count = std::min<int64_t>(kCoupledTile, rows_ - first), at = first * columns_;
    MultiplyRows(walk, first, count, walk.change.data() + at, walk.change_product.data() + at,
                 walk.own.empty() ? nullptr : walk.change_own.data() + at);
  });
}

// By how much E_a changes when `row` takes its change alone; needs the row's gradient.
double CoupledDescent::Gain(const Walk& walk, int64_t row) const {
  const float diagonal = model_.diagonal(row);
  double slope = 0.0, form = 0.0;
  for (int64_t at = row * columns_; at < (row + 1) * columns_; ++at) {
    const float own = walk.own.empty() ? 0.0f : walk.change_own[at];
    slope += static_cast<double>(walk.change[at]) * walk.gradient[at];
    form += static_cast<double>(walk.change[at]) * (walk.change_product[at] + own);
  }
  return 2.0 * slope + diagonal * form;
}

// Error and products follow the change; gradients of the rows behind it up to `block_end` too. What
// SpreadBlock multiplies with is left in change_product.
void CoupledDescent::TakeRow(Walk& walk, int64_t row, int64_t block_end) const {
  const int64_t at = row * columns_;
  const float coupling = 1.0f - walk.shrinkage;
  float* spread = walk.change_product.data() + at;
  for (int64_t i = at; i < at + columns_; ++i) {
    walk.error[i] += walk.change[i];
    walk.product[i] += walk.change_product[i];
    if (!walk.own.empty()) walk.own[i] += walk.change_own[i];
    walk.change_product[i] *= coupling;
  }
  for (int64_t other = row + 1; other < block_end; ++other) {
    kernels::AddScaled(model_.output[row * rows_ + other], spread, columns_,
                       walk.gradient.data() + other * columns_);
  }
}

// Gradients of the rows behind `block` follow the changes of its rows.
void CoupledDescent::SpreadBlock(Walk& walk, int64_t block) const {
  const int64_t from = block * kCoupledTile;
  ForItems(walk, tiles(rows_) - block - 1, [&](int64_t item, int) {
    const int64_t to = (block + 1 + item) * kCoupledTile;
    kernels::MultiplyAdd(model_.output.data() + to * rows_ + from, rows_,
                         walk.change_product.data() + from * columns_, columns_,
                         std::min<int64_t>(kCoupledTile, rows_ - to),
                         std::min<int64_t>(kCoupledTile, rows_ - from), columns_,
                         /*accumulate=*/true, walk.gradient.data() + to * columns_, columns_);
  });
}

// Row after row; needs the gradients.
void CoupledDescent::TakeProposals(Walk& walk) const {
  for (int64_t block = 0; block < tiles(rows_); ++block) {
    const int64_t first = block * kCoupledTile, end = std::min(first + kCoupledTile, rows_);
    bool taken = false;
    for (int64_t row = first; row < end; ++row) {
      if (walk.proposed[row] == 0 || !(Gain(walk, row) < 0.0)) {
        std::fill_n(walk.change_product.data() + row * columns_, columns_, 0.0f);
        continue;
      }
      TakeRow(walk, row, end);
      std::copy_n(walk.change_codes.data() + row * columns_, columns_,
                  walk.codes.data() + row * columns_);
      taken = true;
    }
    if (taken) SpreadBlock(walk, block);
  }
}

int64_t CoupledDescent::SweepTile(Walk& walk, int64_t row_tile, int64_t column_tile) const {
  const int64_t row = row_tile * kCoupledTile, column = column_tile * kCoupledTile;
  const int64_t at = row * columns_ + column;
  const float coupling = 1.0f - walk.shrinkage;
  alignas(64) float gradient[kCoupledTile * kCoupledTile];
  alignas(64) float moved[kCoupledTile * kCoupledTile] = {};
  const float* own[kCoupledTile];
  kernels::CoupledTile tile;
  tile.rows = static_cast<int>(std::min<int64_t>(kCoupledTile, rows_ - row));
  tile.columns = static_cast<int>(std::min<int64_t>(kCoupledTile, columns_ - column));
  kernels::MultiplyAdd(model_.output.data() + row * rows_, rows_, walk.product.data() + column,
                       columns_, tile.rows, rows_, tile.columns, /*accumulate=*/false, gradient,
                       kCoupledTile);
  for (int r = 0; r < tile.rows; ++r) {
    const float diagonal = model_.diagonal(row + r);
    if (!walk.own.empty())
      own[r] = model_.own[model_.groups.group_of(row + r)].data() + column * columns_ + column;
    for (int c = 0; c < tile.columns; ++c) {
      const int64_t from = at + r * columns_ + c;
      float& value = gradient[r * kCoupledTile + c];
      value = coupling * value + walk.shrinkage * diagonal * walk.product[from];
      if (!walk.own.empty()) value += diagonal * walk.own[from];
    }
  }
  tile.weight = weight_ + at;
  tile.error = walk.error.data() + at;
  tile.codes = walk.codes.data() + at;
  tile.apart = apart_ == nullptr ? nullptr : apart_ + at;
  tile.stride = columns_;
  tile.table = walk.table.data() + row * levels_;
  tile.levels = levels_;
  tile.gradient = gradient;
  tile.output = model_.output.data() + row * rows_ + row;
  tile.output_stride = rows_;
  tile.coupling = coupling;
  tile.shared = model_.shared.data() + column * columns_ + column;
  tile.shared_stride = columns_;
  tile.own = walk.own.empty() ? nullptr : own;
  tile.own_factor = walk.shrinkage;
  tile.moved = moved;
  const int64_t changes = kernels::DescendTile(tile);
  for (int r = 0; r < tile.rows; ++r) {
    std::copy_n(moved + r * kCoupledTile, tile.columns, walk.change.data() + at + r * columns_);
  }
  return changes;
}

// The products of the tile's rows follow its changes.
void CoupledDescent::PushTile(Walk& walk, int64_t row_tile, int64_t column_tile) const {
  const int64_t row_end = std::min((row_tile + 1) * kCoupledTile, rows_);
  const int64_t column = column_tile * kCoupledTile;
  const int64_t column_end = std::min(column + kCoupledTile, columns_);
  for (int64_t row = row_tile * kCoupledTile; row < row_end; ++row) {
    for (int64_t i = column; i < column_end; ++i) {
      const float moved = walk.change[row * columns_ + i];
      if (moved == 0.0f) continue;
      kernels::AddScaled(moved, model_.shared.data() + i * columns_, columns_,
                         walk.product.data() + row * columns_);
      if (walk.own.empty()) continue;
      const std::vector<float>& matrix = model_.own[model_.groups.group_of(row)];
      kernels::AddScaled(walk.shrinkage * moved, matrix.data() + i * columns_, columns_,
                         walk.own.data() + row * columns_);
    }
  }
}

// One pass of two-sided coordinate descent. Tiles on one diagonal (row tile + column tile) descend
// at the same time and don't see each other, all others see everything before them. False when
// nothing changed.
bool CoupledDescent::Sweep(Walk& walk) const {
  const int64_t down = tiles(rows_), across = tiles(columns_);
  bool changed = false;
  for (int64_t diagonal = 0; diagonal < down + across - 1; ++diagonal) {
    const int64_t first = std::max<int64_t>(0, diagonal - across + 1);
    const int64_t count = std::min(diagonal, down - 1) - first + 1;
    ForItems(walk, count, [&](int64_t item, int) {
      walk.tile_changes[item] = SweepTile(walk, first + item, diagonal - first - item);
    });
    ForItems(walk, count, [&](int64_t item, int) {
      if (walk.tile_changes[item] > 0) PushTile(walk, first + item, diagonal - first - item);
    });
    for (int64_t item = 0; item < count; ++item) changed |= walk.tile_changes[item] > 0;
  }
  return changed;
}

// Table and codes in the form of FORMAT.md, codebooks rounded to fp16 before.
void CoupledDescent::Store(const Walk& walk, CoupledSolution* solution) const {
  solution->codes.resize(rows_ * columns_);
  solution->table.resize(rows_ * levels_);
  for (int64_t row = 0; row < rows_; ++row) {
    const std::span<const float> table(walk.table.data() + row * levels_,
                                       static_cast<size_t>(levels_));
    const auto first = walk.codes.begin() + row * columns_;
    std::vector<uint8_t> codes(first, first + columns_);
    // Weights kept apart have no error whatever their code: they take the one next to them.
    if (apart_ != nullptr) {
      AssignApart({apart_ + row * columns_, codes.size()}, {weight_ + row * columns_, codes.size()},
                  table, codes);
    }
    StoreRow(table, codes, {solution->table.data() + row * levels_, static_cast<size_t>(levels_)},
             {solution->codes.data() + row * columns_, static_cast<size_t>(columns_)});
  }
}

CoupledSolution CoupledDescent::DescendOne(double shrinkage, int rounds, int worker) {
  Walk walk;
  walk.worker = worker;
  Begin(shrinkage, &walk);
  CoupledSolution solution;
  solution.objective_before = Evaluate(walk);
  // The natural order last: the descent that follows goes the same way.
  for (int round = 0; round < rounds && !Cancelled(); ++round) {
    if (round > 0) FillGradients(walk);
    if (!model_.feedback->orders.empty()) {
      ProposeRoundings(
          walk, model_.feedback->orders[(rounds - 1 - round) % model_.feedback->orders.size()]);
      TakeProposals(walk);
    }
    if (round + 1 == rounds) Sweep(walk);
    FillGradients(walk);
    CorrectCodebooks(walk);
  }
  // A codeword beyond fp16 becomes infinite and the objective with it, so that the start is kept.
  for (float& value : walk.table) value = Float16Value(Float16Bits(value));
  Multiply(walk);
  Sweep(walk);
  solution.objective_after = Evaluate(walk);
  if (solution.objective_after < solution.objective_before) {
    Store(walk, &solution);
  } else {
    solution.objective_after = solution.objective_before;
    Store(start_, &solution);
  }
  return solution;
}

CoupledSolution CoupledDescent::SweepOnce(std::span<const uint8_t> codes,
                                          std::span<const uint16_t> table, double shrinkage) {
  Start(codes, table);
  Walk walk;
  Begin(shrinkage, &walk);
  CoupledSolution solution;
  solution.objective_before = Evaluate(walk);
  Sweep(walk);
  solution.objective_after = Evaluate(walk);
  Store(walk, &solution);
  return solution;
}

absl::StatusOr<std::vector<CoupledSolution>> CoupledDescent::Descend(
    std::span<const uint8_t> codes, std::span<const uint16_t> table,
    std::span<const double> shrinkages, int rounds) {
  Start(codes, table);
  std::vector<CoupledSolution> solutions(shrinkages.size());
  const auto count = static_cast<int64_t>(shrinkages.size());
  if (rows_ * columns_ < kLargeLinear && count > 1) {
    context_.pool->ParallelFor(count, [&](int64_t i, int worker) {
      solutions[i] = DescendOne(shrinkages[i], rounds, worker);
    });
  } else {
    for (int64_t i = 0; i < count; ++i)
      solutions[i] = DescendOne(shrinkages[i], rounds, kWholePool);
  }
  if (Cancelled()) return absl::CancelledError("solve cancelled");
  return solutions;
}

}  // namespace gradq
