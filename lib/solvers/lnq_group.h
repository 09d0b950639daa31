#pragma once

// What the rows of one group share in LNQ: the matrix H in the layouts of the kernels and the
// factors for error feedback. Made once per group by the quantizer, then read by all tiles.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/kernels/coordinate_descent.h"

namespace gradq {

class ThreadPool;

struct LnqSettings {
  int levels = 0;  // 2^bits
  int iterations = 0;
  int cycles = 0;
  bool published = false;  // the paper's algorithm alone
};

struct FeedbackOrder {
  std::vector<int32_t> order;     // position -> column
  kernels::PanelMatrix feedback;  // U of H = U D Uᵀ in that order (lib/kernels/error_feedback.h)
};

struct LnqGroup {
  const float* matrix = nullptr;  // H, row-major [columns, columns]; borrowed, or `loaded`
  int64_t columns = 0;
  kernels::PanelMatrix panels;
  std::vector<float> inverse_diagonal;  // 0 for dead inputs
  std::vector<float> kmeans_weight;     // diag(H), not below 0
  std::vector<FeedbackOrder> orders;    // empty for the published solver
  std::vector<float> loaded;            // published solver: H with a diagonal load
  std::vector<double> damping;          // loads tried because H is not positive definite
};

// `matrix` must outlive the result. INVALID_ARGUMENT when no load up to the mean diagonal makes H
// positive definite.
absl::StatusOr<LnqGroup> PrepareLnqGroup(const float* matrix, int64_t columns,
                                         const LnqSettings& settings, ThreadPool* pool);

}  // namespace gradq
