#include <memory>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/solvers/gptvq_tile.h"
#include "lib/solvers/quantizers/methods.h"
#include "lib/solvers/row_tiles.h"

namespace gradq {

absl::StatusOr<QuantizedLinear> SolveGptvq1d(const LayerProblem& problem,
                                             const SolveContext& context) {
  SweepSettings sweep;
  sweep.damping = OptionDouble(problem.options, "damping");
  sweep.importance = true;
  GRADQ_ASSIGN_OR_RETURN(const std::vector<SweepGroup> groups,
                         PrepareSweepGroups(problem, sweep, context));
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  const GptvqSettings settings{.levels = 1 << problem.bits,
                               .iterations = OptionInt(problem.options, "iterations")};
  QuantizedLinear linear;
  linear.encoding = Encoding::kLut;
  linear.lut.resize(rows * settings.levels);
  std::vector<uint8_t> codes(rows * columns);
  std::vector<double> initial(rows), final(rows);
  const float* weight = problem.weight.const_data_ptr<float>();
  GRADQ_RETURN_IF_ERROR(SolveRowTiles<GptvqTile>(
      problem.groups, problem.name, context.pool,
      [&] { return std::make_unique<GptvqTile>(columns, settings); },
      [&](GptvqTile& tile, const RowRange& task) {
        const int64_t at = task.first * columns;
        const GptvqRows part{
            .rows = task.rows,
            .weights = weight + at,
            .apart = problem.apart.empty() ? nullptr : problem.apart.data() + at,
            .codes = codes.data() + at,
            .lut = linear.lut.data() + task.first * settings.levels,
            .initial = initial.data() + task.first,
            .final = final.data() + task.first,
        };
        return tile.Solve(groups[groups.size() == 1 ? 0 : task.group], context.cancelled, part);
      }));
  for (const SweepGroup& group : groups) {
    linear.record.damping.insert(linear.record.damping.end(), group.damping.begin(),
                                 group.damping.end());
  }
  linear.record.objective_initial = SumOfGroupMeans(problem.groups, initial);
  linear.record.objective_final = SumOfGroupMeans(problem.groups, final);
  linear.packed = PackCodes(codes, rows, columns, problem.bits);
  return linear;
}

}  // namespace gradq
