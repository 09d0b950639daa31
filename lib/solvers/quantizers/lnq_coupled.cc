// lnq on the coupled objective: the uncoupled solution of a width once, then down from it for each
// shrinkage.

#include <algorithm>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/packing.h"
#include "lib/solvers/coupled_descent.h"
#include "lib/solvers/quantizers/methods.h"

namespace gradq {
namespace {

// Of a full descent; more pay little (docs/coupled.md). Never more than LNQ's iterations.
constexpr int kRounds = 2;

void Record(double shrinkage, const CoupledSolution* solution, QuantizedLinear* linear) {
  linear->record.numbers["shrinkage"] = shrinkage;
  if (solution == nullptr) return;
  linear->record.numbers["coupled_objective_initial"] = solution->objective_before;
  linear->record.numbers["coupled_objective_final"] = solution->objective_after;
}

}  // namespace

absl::StatusOr<std::vector<QuantizedLinear>> SolveLnqShrinkages(const LayerProblem& problem,
                                                                std::span<const double> shrinkages,
                                                                const SolveContext& context) {
  std::vector<std::shared_ptr<const LnqGroup>> groups;
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear start, SolveUncoupledLnq(problem, context, &groups));
  std::vector<double> coupled;
  std::copy_if(shrinkages.begin(), shrinkages.end(), std::back_inserter(coupled),
               [](double shrinkage) { return shrinkage < 1; });
  std::vector<CoupledSolution> solutions;
  if (!coupled.empty()) {
    LnqSettings settings;
    settings.levels = 1 << problem.bits;
    absl::StatusOr<CoupledModel> model = PrepareCoupledModel(
        problem, settings, groups.size() == 1 ? groups.front() : nullptr, context.pool);
    if (!model.ok()) {
      return absl::InvalidArgumentError(StrCat(problem.name, ": ", model.status().message()));
    }
    CoupledDescent descent(*model, problem.weight.const_data_ptr<float>(),
                           problem.apart.empty() ? nullptr : problem.apart.data(), settings.levels,
                           context);
    const std::vector<uint8_t> codes =
        UnpackCodes(start.packed, model->rows, model->columns, problem.bits);
    absl::StatusOr<std::vector<CoupledSolution>> descended = descent.Descend(
        codes, start.lut, coupled, std::min(kRounds, OptionInt(problem.options, "iterations")));
    if (!descended.ok()) {
      return absl::Status(descended.status().code(),
                          StrCat(problem.name, ": ", descended.status().message()));
    }
    solutions = *std::move(descended);
  }
  std::vector<QuantizedLinear> results;
  auto next = solutions.begin();
  for (const double shrinkage : shrinkages) {
    QuantizedLinear linear = start;
    if (shrinkage < 1) {
      linear.lut = std::move(next->table);
      linear.packed =
          PackCodes(next->codes, problem.weight.size(0), problem.weight.size(1), problem.bits);
      Record(shrinkage, &*next++, &linear);
    } else {
      Record(shrinkage, nullptr, &linear);
    }
    results.push_back(std::move(linear));
  }
  return results;
}

}  // namespace gradq
