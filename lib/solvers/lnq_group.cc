#include "lib/solvers/lnq_group.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/kernels/error_feedback.h"

namespace gradq {
namespace {

// Share of the mean diagonal that error feedback adds to H: the factor of a nearly singular H would
// answer small rounding errors with large corrections.
constexpr double kFeedbackLoad = 1e-3;
// First step of the published ladder, and where every ladder ends.
constexpr double kPublishedLoad = 1e-5;
constexpr double kLargestLoad = 1.001;

absl::Status NotPositive(double mean) {
  return absl::InvalidArgumentError(
      StrCat("statistic not positive definite with its mean diagonal added: ", mean));
}

// The published algorithm works on H itself where that is positive definite, else on H with the
// first sufficient load of 1e-5, 1e-4, ... of the mean diagonal.
absl::Status LoadDiagonal(std::span<const int32_t> natural, double mean, ThreadPool* pool,
                          LnqGroup* group) {
  std::vector<float> factor;
  double load = 0.0;
  while (!kernels::FeedbackFactor(group->matrix, group->columns, load, natural, pool, &factor)) {
    load = load == 0.0 ? kPublishedLoad * mean : load * 10.0;
    if (load > kLargestLoad * mean) return NotPositive(mean);
    group->damping.push_back(load);
  }
  if (load == 0.0) return absl::OkStatus();
  const int64_t columns = group->columns;
  group->loaded.assign(group->matrix, group->matrix + columns * columns);
  for (int64_t j = 0; j < columns; ++j) {
    float& diagonal = group->loaded[j * columns + j];
    diagonal += static_cast<float>(load);
    group->inverse_diagonal[j] = 1.0f / diagonal;
  }
  group->matrix = group->loaded.data();
  group->panels = kernels::PanelMatrix(group->matrix, columns);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LnqGroup> PrepareLnqGroup(const float* matrix, int64_t columns,
                                         const LnqSettings& settings, ThreadPool* pool) {
  LnqGroup group;
  group.matrix = matrix;
  group.columns = columns;
  group.panels = kernels::PanelMatrix(matrix, columns);
  group.inverse_diagonal.resize(columns);
  group.kmeans_weight.resize(columns);
  double trace = 0.0;
  for (int64_t j = 0; j < columns; ++j) {
    const float diagonal = std::max(0.0f, matrix[j * columns + j]);
    group.kmeans_weight[j] = diagonal;
    group.inverse_diagonal[j] = diagonal > 0.0f ? 1.0f / diagonal : 0.0f;
    trace += diagonal;
  }
  const double mean = trace / static_cast<double>(columns);
  if (mean == 0.0) return group;
  std::vector<int32_t> natural(columns);
  std::iota(natural.begin(), natural.end(), 0);
  if (settings.published) {
    GRADQ_RETURN_IF_ERROR(LoadDiagonal(natural, mean, pool, &group));
    return group;
  }

  std::vector<int32_t> falling = natural;
  std::stable_sort(falling.begin(), falling.end(), [&](int32_t a, int32_t b) {
    return group.kmeans_weight[a] > group.kmeans_weight[b];
  });
  std::vector<float> factor;
  const bool regular = kernels::FeedbackFactor(matrix, columns, 0.0, natural, pool, &factor);
  double load = kFeedbackLoad * mean;
  if (!regular) group.damping.push_back(load);
  for (const std::vector<int32_t>& order : {natural, falling}) {
    while (!kernels::FeedbackFactor(matrix, columns, load, order, pool, &factor)) {
      load *= 10.0;
      if (load > kLargestLoad * mean) return NotPositive(mean);
      group.damping.push_back(load);
    }
    group.orders.push_back({order, kernels::PanelMatrix(factor.data(), columns)});
  }
  return group;
}

}  // namespace gradq
