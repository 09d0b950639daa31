#include <memory>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/solvers/gptq_tile.h"
#include "lib/solvers/quantizers/methods.h"
#include "lib/solvers/row_tiles.h"
#include "lib/solvers/sweep_group.h"

namespace gradq {

absl::StatusOr<QuantizedLinear> SolveGptq(const LayerProblem& problem,
                                          const SolveContext& context) {
  const int64_t columns = problem.weight.size(1);
  // The affine encoding knows groups of consecutive columns only, so that columns taken in another
  // order need their grids before the sweep (compressed-tensors' actorder "weight"; "group" would
  // need a g_idx).
  SweepSettings sweep;
  sweep.activation = OptionWord(problem.options, "order") == "activation";
  sweep.damping = OptionDouble(problem.options, "damping");
  GRADQ_ASSIGN_OR_RETURN(const std::vector<SweepGroup> groups,
                         PrepareSweepGroups(problem, sweep, context));

  // Round to nearest is the start that is reported, and what rows keep where it is better.
  GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear, SolveRtn(problem, context));
  const int64_t rows = problem.weight.size(0),
                grids = (columns + linear.group_size - 1) / linear.group_size;
  std::vector<uint8_t> codes = UnpackCodes(linear.packed, rows, columns, problem.bits);
  GptqSettings settings;
  settings.highest = (1 << problem.bits) - 1;
  settings.group_size = linear.group_size;
  settings.static_groups =
      sweep.activation || OptionWord(problem.options, "static_groups") == "yes";
  std::vector<double> initial(rows), final(rows);
  const float* weight = problem.weight.const_data_ptr<float>();
  GRADQ_RETURN_IF_ERROR(SolveRowTiles<GptqTile>(
      problem.groups, problem.name, context.pool,
      [&] { return std::make_unique<GptqTile>(columns, settings); },
      [&](GptqTile& tile, const RowRange& task) {
        const int64_t at = task.first * columns, grid = task.first * grids;
        const GptqRows part{
            .rows = task.rows,
            .weights = weight + at,
            .apart = problem.apart.empty() ? nullptr : problem.apart.data() + at,
            .codes = codes.data() + at,
            .scale = linear.scale.data() + grid,
            .zero_point = linear.zero_point.data() + grid,
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
