// GuidedQuant's layer-wise non-uniform quantization as published (arXiv 2505.07004, Algorithm 2 and
// the reference code's conventions): start from SqueezeLLM's assignment, codebook step with a ridge
// of 1e-7, cyclic coordinate descent in natural order, and for the linear as a whole: stop at the
// first codebook step that does not lower the objective, keeping the best.

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/kernels/coordinate_descent.h"
#include "lib/solvers/codebook_step.h"
#include "lib/solvers/lnq_group.h"
#include "lib/solvers/quantizers/methods.h"

namespace gradq {
namespace {

using kernels::AlignedFloats;
using kernels::kTileRows;

// Up to 32 rows of one group, transposed.
struct Tile {
  const LnqGroup* group = nullptr;
  int64_t first = 0;
  int rows = 0;
  AlignedFloats weight, error, table, midpoint;
  AlignedFloats active;  // RowTile::active; null when the linear has no weights kept apart
  std::vector<uint8_t> codes;
  double forms[kTileRows] = {};
};

class PublishedSolver {
 public:
  PublishedSolver(const LayerProblem& problem, const SolveContext& context,
                  std::span<const LnqGroup> groups)
      : problem_(problem),
        context_(context),
        columns_(problem.weight.size(1)),
        levels_(1 << problem.bits) {
    for (int k = 0; k < problem.groups.groups; ++k) {
      const int64_t end = problem.groups.begin(k + 1);
      for (int64_t row = problem.groups.begin(k); row < end; row += kTileRows) {
        Tile tile;
        tile.group = &groups[groups.size() == 1 ? 0 : k];
        tile.first = row;
        tile.rows = static_cast<int>(std::min<int64_t>(kTileRows, end - row));
        tiles_.push_back(std::move(tile));
      }
    }
    for (int worker = 0; worker < context.pool->threads(); ++worker) {
      steps_.emplace_back(columns_, levels_);
    }
  }

  // Codes, table and error of SqueezeLLM's result; the objective of it.
  double Start(const QuantizedLinear& squeezed) {
    const std::vector<uint8_t> codes =
        UnpackCodes(squeezed.packed, problem_.groups.rows, columns_, problem_.bits);
    const float* weight = problem_.weight.const_data_ptr<float>();
    const std::vector<uint8_t>& apart = problem_.apart;
    ForEachTile([&](Tile& tile, int) {
      if (!apart.empty()) {
        tile.active = AlignedFloats(columns_ * kTileRows);
        std::fill_n(tile.active.data(), columns_ * kTileRows, 1.0f);
      }
      tile.weight = AlignedFloats(columns_ * kTileRows);
      tile.error = AlignedFloats(columns_ * kTileRows);
      tile.table = AlignedFloats(levels_ * kTileRows);
      tile.midpoint = AlignedFloats(levels_ * kTileRows);
      tile.codes.assign(columns_ * kTileRows, 0);
      for (int row = 0; row < tile.rows; ++row) {
        for (int q = 0; q < levels_; ++q) {
          tile.table.data()[q * kTileRows + row] =
              Float16Value(squeezed.lut[(tile.first + row) * levels_ + q]);
        }
        for (int64_t j = 0; j < columns_; ++j) {
          const int64_t from = (tile.first + row) * columns_ + j, to = j * kTileRows + row;
          tile.codes[to] = codes[from];
          tile.weight.data()[to] = weight[from];
          if (!apart.empty() && apart[from] != 0) {
            tile.active.data()[to] = 0.0f;
            tile.error.data()[to] = 0.0f;
            continue;
          }
          tile.error.data()[to] = tile.table.data()[codes[from] * kTileRows + row] - weight[from];
        }
      }
    });
    return Objective();
  }

  // Coordinate descent from the current assignment to the current codebooks.
  void AssignmentStep(int cycles) {
    ForEachTile([&](Tile& tile, int) {
      for (int cycle = 0; cycle < cycles; ++cycle) {
        if (context_.cancelled && context_.cancelled()) return;
        if (!kernels::CoordinateDescentCycle(
                tile.group->panels, tile.group->inverse_diagonal.data(), View(&tile), nullptr)) {
          break;
        }
      }
      Recode(&tile);
    });
  }

  double CodebookStepOfAll() {
    ForEachTile([&](Tile& tile, int worker) {
      for (int row = 0; row < tile.rows; ++row) {
        steps_[worker].Update(tile.group->matrix, row, tile.weight.data(), tile.codes.data(),
                              CodebookRidge::kPublished, tile.error.data(), tile.table.data(),
                              tile.active.data());
      }
      Recode(&tile);
    });
    return Objective();
  }

  // Σ_k mean over the rows of group k of δᵀHδ.
  double Objective() {
    ForEachTile([&](Tile& tile, int) {
      kernels::ExactQuadraticForms(tile.group->panels, tile.error.data(), tile.forms);
    });
    double total = 0.0;
    for (const Tile& tile : tiles_) {
      double sum = 0.0;
      for (int row = 0; row < tile.rows; ++row) sum += tile.forms[row];
      const int group = problem_.groups.group_of(tile.first);
      total += sum / static_cast<double>(problem_.groups.size(group));
    }
    return total;
  }

  // The current solution with its table in fp16.
  absl::StatusOr<QuantizedLinear> Store() {
    QuantizedLinear linear;
    linear.encoding = Encoding::kLut;
    linear.lut.resize(problem_.groups.rows * levels_);
    std::vector<uint8_t> codes(problem_.groups.rows * columns_);
    std::vector<float> table(levels_);
    std::vector<uint8_t> row_codes(columns_);
    for (const Tile& tile : tiles_) {
      for (int row = 0; row < tile.rows; ++row) {
        for (int q = 0; q < levels_; ++q) {
          const float value = tile.table.data()[q * kTileRows + row];
          table[q] = Float16Value(Float16Bits(value));
          if (!std::isfinite(table[q])) {
            return absl::InvalidArgumentError(
                StrCat(problem_.name, ": codeword beyond fp16: ", value));
          }
        }
        for (int64_t j = 0; j < columns_; ++j) row_codes[j] = tile.codes[j * kTileRows + row];
        // Their error is 0 whatever the code; they take the one next to them in the stored table.
        if (!problem_.apart.empty()) {
          const int64_t first = (tile.first + row) * columns_;
          AssignApart(std::span(problem_.apart).subspan(first, columns_),
                      {problem_.weight.const_data_ptr<float>() + first, row_codes.size()}, table,
                      row_codes);
        }
        StoreRow(table, row_codes,
                 std::span(linear.lut).subspan((tile.first + row) * levels_, levels_),
                 std::span(codes).subspan((tile.first + row) * columns_, columns_));
      }
    }
    linear.packed = PackCodes(codes, problem_.groups.rows, columns_, problem_.bits);
    return linear;
  }

 private:
  template <typename Body>
  void ForEachTile(Body&& body) {
    context_.pool->ParallelFor(static_cast<int64_t>(tiles_.size()),
                               [&](int64_t i, int worker) { body(tiles_[i], worker); });
  }

  kernels::RowTile View(Tile* tile) {
    for (int64_t i = 0; i < (levels_ - 1) * kTileRows; ++i) {
      tile->midpoint.data()[i] = 0.5f * (tile->table.data()[i] + tile->table.data()[i + kTileRows]);
    }
    return {tile->weight.data(), tile->error.data(),    levels_,
            tile->table.data(),  tile->midpoint.data(), tile->active.data()};
  }

  // Codes of ŵ, which is one of the codewords.
  void Recode(Tile* tile) {
    AlignedFloats target(columns_ * kTileRows);
    for (int64_t i = 0; i < columns_ * kTileRows; ++i) {
      target.data()[i] = tile->weight.data()[i] + tile->error.data()[i];
    }
    kernels::RoundToNearest(columns_, View(tile), target.data(), tile->codes.data());
  }

  const LayerProblem& problem_;
  const SolveContext& context_;
  int64_t columns_;
  int levels_;
  std::vector<Tile> tiles_;
  std::vector<RowCodebookStep> steps_;
};

}  // namespace

absl::StatusOr<QuantizedLinear> SolveLnqPublished(const LayerProblem& problem,
                                                  const SolveContext& context) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear squeezed, SolveSqueezellm(problem, context));
  LnqSettings settings;
  settings.published = true;
  const std::vector<at::Tensor> matrices = problem.objective == Objective::kPlain
                                               ? std::vector<at::Tensor>{problem.gram}
                                               : problem.fisher_blocks;
  std::vector<LnqGroup> groups;
  std::vector<double> damping;
  for (size_t k = 0; k < matrices.size(); ++k) {
    absl::StatusOr<LnqGroup> group = PrepareLnqGroup(
        matrices[k].const_data_ptr<float>(), problem.weight.size(1), settings, context.pool);
    if (!group.ok()) {
      return absl::InvalidArgumentError(
          StrCat(problem.name, ": group ", k, ": ", group.status().message()));
    }
    damping.insert(damping.end(), group->damping.begin(), group->damping.end());
    groups.push_back(*std::move(group));
  }

  PublishedSolver solver(problem, context, groups);
  const double initial = solver.Start(squeezed);
  GRADQ_ASSIGN_OR_RETURN(QuantizedLinear best, solver.Store());
  double best_objective = initial;
  const int iterations = OptionInt(problem.options, "iterations");
  int used = 0;
  for (; used < iterations; ++used) {
    if (used > 0) solver.AssignmentStep(OptionInt(problem.options, "cycles"));
    if (context.cancelled && context.cancelled()) {
      return absl::CancelledError(StrCat(problem.name, ": solve cancelled"));
    }
    const double objective = solver.CodebookStepOfAll();
    if (!(objective < best_objective)) break;
    best_objective = objective;
    GRADQ_ASSIGN_OR_RETURN(best, solver.Store());
  }
  best.record.objective_initial = initial;
  best.record.damping = damping;
  best.record.numbers["iterations_used"] = used;
  return best;
}

}  // namespace gradq
