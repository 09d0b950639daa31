#include "lib/solvers/sweep_group.h"

#include <algorithm>
#include <numeric>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/kernels/error_feedback.h"

namespace gradq {
namespace {

// First step beyond a damping of 0, and where the ladder ends, of the mean diagonal.
constexpr double kFirstLoad = 1e-5;
constexpr double kLargestLoad = 1.001;

absl::StatusOr<SweepGroup> PrepareSweepGroup(const float* matrix, int64_t columns,
                                             const SweepSettings& settings, ThreadPool* pool) {
  SweepGroup group;
  group.matrix = matrix;
  group.panels = kernels::PanelMatrix(matrix, columns);
  group.order.resize(columns);
  std::iota(group.order.begin(), group.order.end(), 0);
  std::vector<float> diagonal(columns);
  for (int64_t j = 0; j < columns; ++j) diagonal[j] = std::max(0.0f, matrix[j * columns + j]);
  if (settings.activation) {
    std::stable_sort(group.order.begin(), group.order.end(),
                     [&](int32_t a, int32_t b) { return diagonal[a] > diagonal[b]; });
  }
  double mean =
      std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / static_cast<double>(columns);
  // Every input is dead: any load makes U the identity.
  if (mean == 0.0) mean = 1.0;
  std::vector<float> factor;
  std::vector<double> inverse;
  const auto factored = [&](double load) {
    return kernels::FeedbackFactor(matrix, columns, load, group.order, pool, &factor) &&
           (!settings.importance ||
            kernels::InverseDiagonal(matrix, columns, load, pool, &inverse));
  };
  double load = settings.damping * mean;
  while (!factored(load)) {
    load = std::max(kFirstLoad * mean, load * 10.0);
    if (load > kLargestLoad * mean) {
      return absl::InvalidArgumentError(
          StrCat("statistic not positive definite with its mean diagonal added: ", mean));
    }
    group.damping.push_back(load);
  }
  group.feedback = kernels::PanelMatrix(factor.data(), columns);
  for (const double variance : inverse) {
    group.importance.push_back(static_cast<float>(1.0 / variance));
  }
  return group;
}

}  // namespace

absl::StatusOr<std::vector<SweepGroup>> PrepareSweepGroups(const LayerProblem& problem,
                                                           const SweepSettings& settings,
                                                           const SolveContext& context) {
  const std::vector<at::Tensor> matrices = problem.objective == Objective::kPlain
                                               ? std::vector<at::Tensor>{problem.gram}
                                               : problem.fisher_blocks;
  std::vector<SweepGroup> groups;
  for (size_t k = 0; k < matrices.size(); ++k) {
    if (context.cancelled && context.cancelled()) {
      return absl::CancelledError(StrCat(problem.name, ": solve cancelled"));
    }
    absl::StatusOr<SweepGroup> group = PrepareSweepGroup(
        matrices[k].const_data_ptr<float>(), problem.weight.size(1), settings, context.pool);
    if (!group.ok()) {
      return absl::InvalidArgumentError(
          StrCat(problem.name, ": group ", k, ": ", group.status().message()));
    }
    groups.push_back(*std::move(group));
  }
  return groups;
}

}  // namespace gradq
