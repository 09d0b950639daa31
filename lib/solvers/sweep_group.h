#pragma once

// What the rows of one channel group share in a GPTQ sweep: H in the kernels' layouts and the
// factor of error feedback. Made once per group by quantizers gptq and gptvq1d, then read by all
// tiles.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/groups.h"
#include "lib/kernels/coordinate_descent.h"
#include "lib/solvers/layer_problem.h"

namespace gradq {

struct SweepSettings {
  double damping = 0.01;    // share of the mean diagonal added to H before it is factored
  bool activation = false;  // columns by falling H_jj, not in their own order
  bool importance = false;  // also 1 / [H⁻¹]_jj
};

struct SweepGroup {
  const float* matrix = nullptr;  // H, row-major [columns, columns]; borrowed
  kernels::PanelMatrix panels;    // H, for objectives
  std::vector<int32_t> order;     // position -> column
  kernels::PanelMatrix feedback;  // U of the damped H in that order (lib/kernels/error_feedback.h)
  std::vector<float> importance;  // per column, damped H; empty unless asked for
  std::vector<double> damping;    // loads tried beyond settings.damping's
};

// One per statistic that `problem.objective` minimises: `gram` (plain), or every Fisher block. A
// dead input (H_jj = 0) stands alone: it is rounded to nearest and moves nothing. Where the damped
// H is not positive definite, the load grows tenfold (from 1e-5 of the mean diagonal on).
// CANCELLED; INVALID_ARGUMENT naming linear and group when no load up to the mean diagonal
// suffices.
absl::StatusOr<std::vector<SweepGroup>> PrepareSweepGroups(const LayerProblem& problem,
                                                           const SweepSettings& settings,
                                                           const SolveContext& context);

}  // namespace gradq
