#include <atomic>
#include <cmath>
#include <memory>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/kernels/kmeans1d.h"
#include "lib/solvers/codebook_step.h"
#include "lib/solvers/quantizers/methods.h"

namespace gradq {
namespace {

// Rows of one task.
constexpr int64_t kRows = 16;

struct RowSolver {
  kernels::Kmeans1dWorkspace kmeans;
  std::vector<double> centers;
  std::vector<float> table, kept_importance;
  std::vector<uint8_t> codes;

  // The published code masks the weight of entries that are exactly 0; here they count like any
  // other. `apart`: LayerProblem::apart of the row, or empty. False when fp16 can't hold a
  // codeword.
  bool Solve(std::span<const float> weights, std::span<const float> importance,
             std::span<const uint8_t> apart, std::span<uint16_t> lut, std::span<uint8_t> stored) {
    centers.resize(lut.size());
    table.resize(lut.size());
    codes.resize(weights.size());
    if (!apart.empty()) {
      kept_importance.resize(weights.size());
      ImportanceWithout(apart, importance, kept_importance);
      importance = kept_importance;
    }
    kernels::OptimalKmeans1d(weights, importance, centers, &kmeans);
    for (size_t q = 0; q < table.size(); ++q) {
      table[q] = Float16Value(Float16Bits(static_cast<float>(centers[q])));
      if (!std::isfinite(table[q])) return false;
    }
    AssignNearest(weights, table, codes);
    StoreRow(table, codes, lut, stored);
    return true;
  }
};

}  // namespace

absl::StatusOr<QuantizedLinear> SolveSqueezellm(const LayerProblem& problem,
                                                const SolveContext& context) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  const int64_t levels = int64_t{1} << problem.bits;
  const float* weight = problem.weight.const_data_ptr<float>();
  const float* importance = problem.fisher_diagonal.const_data_ptr<float>();
  QuantizedLinear linear;
  linear.encoding = Encoding::kLut;
  linear.lut.resize(rows * levels);
  std::vector<uint8_t> codes(rows * columns);
  std::vector<RowSolver> solvers(context.pool->threads());
  std::atomic<bool> cancelled = false, overflow = false;
  context.pool->ParallelFor((rows + kRows - 1) / kRows, [&](int64_t task, int worker) {
    if (cancelled.load() || (context.cancelled && context.cancelled())) {
      cancelled = true;
      return;
    }
    for (int64_t row = task * kRows; row < std::min((task + 1) * kRows, rows); ++row) {
      std::span<const uint8_t> apart = problem.apart;
      if (!apart.empty()) apart = apart.subspan(row * columns, columns);
      if (!solvers[worker].Solve({weight + row * columns, static_cast<size_t>(columns)},
                                 {importance + row * columns, static_cast<size_t>(columns)}, apart,
                                 {linear.lut.data() + row * levels, static_cast<size_t>(levels)},
                                 {codes.data() + row * columns, static_cast<size_t>(columns)})) {
        overflow = true;
      }
    }
  });
  if (cancelled) return absl::CancelledError(StrCat(problem.name, ": solve cancelled"));
  if (overflow) return absl::InvalidArgumentError(StrCat(problem.name, ": codeword beyond fp16"));
  linear.packed = PackCodes(codes, rows, columns, problem.bits);
  return linear;
}

}  // namespace gradq
