#pragma once

// LNQ on up to 32 rows of one group (GuidedQuant, arXiv 2505.07004, Algorithm 2, with the additions
// below). A row's result depends on its own weights and H alone, so tiles may be solved by any
// thread in any order.
//
// Beyond the published algorithm: optimal k-means as the start, every assignment step also tries
// error-feedback rounding to the current codebook in two orders and a few perturbed starts, the
// codebook step corrects the current codebook (so that its ridge pulls towards it), and each row
// keeps its best solution.
//
// Weights kept apart have no error: they are left out of k-means, of every assignment and of the
// codebook equations. Their code is the nearest codeword of the result.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "lib/kernels/coordinate_descent.h"
#include "lib/kernels/kmeans1d.h"
#include "lib/solvers/codebook_step.h"
#include "lib/solvers/lnq_group.h"

namespace gradq {

// Results of one row go to codes[row · columns], lut[row · levels], initial[row], final[row].
struct LnqOutput {
  uint8_t* codes = nullptr;
  uint16_t* lut = nullptr;    // fp16 bits
  double* initial = nullptr;  // δᵀHδ of the fp16-rounded k-means table
  double* final = nullptr;    // δᵀHδ of the result as stored
};

class LnqTile {
 public:
  LnqTile(int64_t columns, const LnqSettings& settings);

  // `weights` [rows, columns], rows ≤ kTileRows; `apart` as LayerProblem::apart of these rows, or
  // null. CANCELLED; INVALID_ARGUMENT when fp16 can't hold a codeword.
  absl::Status Solve(const LnqGroup& group, const float* weights, const uint8_t* apart, int rows,
                     const std::function<bool()>& cancelled, const LnqOutput& output);

 private:
  using Buffer = std::vector<float>;
  // One assignment and codebook per row with its objective.
  struct Solution {
    float* error = nullptr;  // [columns][32]
    float* table = nullptr;  // [levels][32]
    double objective[kernels::kTileRows];
  };

  kernels::RowTile View(const Solution& solution);
  void SetMidpoints(const Solution& solution);
  void Load(const float* weights, const uint8_t* apart);
  void Start(const LnqGroup& group);
  // Importance of a row's weights for k-means.
  std::span<const float> Importance(const LnqGroup& group, int row);
  // Error 0 for weights kept apart.
  void HoldApart(float* error) const;
  void Evaluate(const LnqGroup& group, Solution* solution);
  // Takes over the rows of `candidate` that are better; true when any was.
  bool Keep(const Solution& candidate, Solution* best);
  void Copy(const Solution& from, Solution* to);
  bool CodebookStep(const LnqGroup& group);
  // Coordinate descent from the candidate; true when some row of it was kept.
  bool Descend(const LnqGroup& group);
  void FeedbackOfMovedWeights(const FeedbackOrder& feedback, uint64_t seed);
  void MoveSomeColumns(uint64_t seed);
  bool AssignmentStep(const LnqGroup& group, int iteration);
  bool Stopped() const { return *cancelled_ && (*cancelled_)(); }
  absl::Status RoundTable();

  int64_t columns_;
  LnqSettings settings_;
  int rows_ = 0;
  const std::function<bool()>* cancelled_ = nullptr;
  kernels::AlignedFloats storage_;
  float* weight_ = nullptr;  // [columns][32]
  float* active_ = nullptr;  // RowTile::active: null, or `active_storage_`
  float* active_storage_ = nullptr;
  float* midpoint_ = nullptr;  // [levels][32]
  Solution best_, candidate_, trial_;
  std::vector<uint8_t> codes_;  // [columns][32]
  std::vector<float> row_values_, row_importance_;
  std::vector<uint8_t> row_codes_;
  std::vector<double> centers_;
  kernels::Kmeans1dWorkspace kmeans_;
  RowCodebookStep step_;
};

}  // namespace gradq
