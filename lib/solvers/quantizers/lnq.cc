#include <memory>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/packing.h"
#include "lib/solvers/lnq_tile.h"
#include "lib/solvers/quantizers/methods.h"
#include "lib/solvers/row_tiles.h"

namespace gradq {

absl::StatusOr<QuantizedLinear> SolveLnq(const LayerProblem& problem, const SolveContext& context) {
  if (OptionWord(problem.options, "solver") == "published")
    return SolveLnqPublished(problem, context);
  if (problem.objective == Objective::kCoupled && problem.shrinkage < 1) {
    GRADQ_ASSIGN_OR_RETURN(std::vector<QuantizedLinear> only,
                           SolveLnqShrinkages(problem, {&problem.shrinkage, 1}, context));
    return std::move(only.front());
  }
  std::vector<std::shared_ptr<const LnqGroup>> groups;
  return SolveUncoupledLnq(problem, context, &groups);
}

absl::StatusOr<QuantizedLinear> SolveUncoupledLnq(
    const LayerProblem& problem, const SolveContext& context,
    std::vector<std::shared_ptr<const LnqGroup>>* groups) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  LnqSettings settings;
  settings.levels = 1 << problem.bits;
  settings.iterations = OptionInt(problem.options, "iterations");
  settings.cycles = OptionInt(problem.options, "cycles");

  // One matrix serves all groups in the plain objective.
  const std::vector<at::Tensor> matrices = problem.objective == Objective::kPlain
                                               ? std::vector<at::Tensor>{problem.gram}
                                               : problem.fisher_blocks;
  QuantizedLinear linear;
  for (size_t k = 0; k < matrices.size(); ++k) {
    if (context.cancelled && context.cancelled())
      return absl::CancelledError(StrCat(problem.name, ": solve cancelled"));
    absl::StatusOr<LnqGroup> group =
        PrepareLnqGroup(matrices[k].const_data_ptr<float>(), columns, settings, context.pool);
    if (!group.ok())
      return absl::InvalidArgumentError(
          StrCat(problem.name, ": group ", k, ": ", group.status().message()));
    linear.record.damping.insert(linear.record.damping.end(), group->damping.begin(),
                                 group->damping.end());
    groups->push_back(std::make_shared<const LnqGroup>(*std::move(group)));
  }

  linear.encoding = Encoding::kLut;
  linear.lut.resize(rows * settings.levels);
  std::vector<uint8_t> codes(rows * columns);
  std::vector<double> initial(rows), final(rows);
  const float* weight = problem.weight.const_data_ptr<float>();
  GRADQ_RETURN_IF_ERROR(SolveRowTiles<LnqTile>(
      problem.groups, problem.name, context.pool,
      [&] { return std::make_unique<LnqTile>(columns, settings); },
      [&](LnqTile& tile, const RowRange& task) {
        const LnqOutput output{codes.data() + task.first * columns,
                               linear.lut.data() + task.first * settings.levels,
                               initial.data() + task.first, final.data() + task.first};
        const uint8_t* apart =
            problem.apart.empty() ? nullptr : problem.apart.data() + task.first * columns;
        return tile.Solve(*(*groups)[groups->size() == 1 ? 0 : task.group],
                          weight + task.first * columns, apart, task.rows, context.cancelled,
                          output);
      }));
  linear.record.objective_initial = SumOfGroupMeans(problem.groups, initial);
  linear.record.objective_final = SumOfGroupMeans(problem.groups, final);
  linear.packed = PackCodes(codes, rows, columns, problem.bits);
  return linear;
}

}  // namespace gradq
