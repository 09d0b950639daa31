#pragma once

// GPTVQ-1D (arXiv:2402.15319) with one codebook per row, on up to 32 rows of one channel group. A
// row's result depends on its own weights and H alone, so tiles may be solved by any thread in any
// order. Called by quantizer gptvq1d.
//
// The paper shares a codebook between rows and up to 256 columns; here a whole row is one group,
// the same bits as SqueezeLLM's and LNQ's tables, as the GuidedQuant paper compares it. Its start,
// k-means weighted with 1 / [H⁻¹]_jj, is the optimal one instead of a hundred steps from spread
// seeds (the released code leaves the weights out when codewords are single numbers). Its last
// step, 25 of Adam's on the codebook with fixed codes, is replaced by the minimum in closed form;
// codebooks are rounded to fp16, not to 8 bits.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "lib/kernels/feedback_sweep.h"
#include "lib/kernels/kmeans1d.h"
#include "lib/solvers/codebook_step.h"
#include "lib/solvers/sweep_group.h"

namespace gradq {

struct GptvqSettings {
  int levels = 0;      // 2^bits
  int iterations = 1;  // sweeps, each followed by a codebook update
};

// Of the tile's first row on; codes and lut as StoreRow writes them.
struct GptvqRows {
  int rows = 0;
  const float* weights = nullptr;
  const uint8_t* apart = nullptr;  // null: none
  uint8_t* codes = nullptr;
  uint16_t* lut = nullptr;  // fp16 bits
  double* initial = nullptr;  // δᵀHδ of the fp16-rounded k-means table, weights rounded to nearest
  double* final = nullptr;  // δᵀHδ of the result as stored
};

class GptvqTile {
 public:
  GptvqTile(int64_t columns, const GptvqSettings& settings);

  // CANCELLED; INVALID_ARGUMENT when fp16 can't hold a codeword.
  absl::Status Solve(const SweepGroup& group, const std::function<bool()>& cancelled,
                     const GptvqRows& rows);

 private:
  void Load(const GptvqRows& rows);
  // The codebook of each row's k-means into table_.
  void Start(const SweepGroup& group, int rows);
  void SetMidpoints();
  // Codes nearest to `target` [columns][32], and the errors that follow, 0 where kept apart.
  void Assign(const float* target);
  // Rounds the table to fp16; the codes stay, their errors follow.
  absl::Status RoundTable();
  // The rows that are better than the best so far, or all, as they would be stored.
  void Keep(const SweepGroup& group, bool all, const GptvqRows& rows);

  int64_t columns_;
  GptvqSettings settings_;
  bool some_apart_ = false;
  kernels::AlignedFloats storage_;
  float* weight_ = nullptr;  // [columns][32]
  float* error_ = nullptr;
  float* active_ = nullptr;
  float* target_ = nullptr;
  float* table_ = nullptr;  // [levels][32]
  float* midpoint_ = nullptr;
  float* unrounded_ = nullptr;  // the table before it is rounded
  std::vector<uint8_t> codes_;  // [columns][32]
  std::vector<float> row_values_, row_weights_, row_table_;
  std::vector<uint8_t> row_codes_;
  std::vector<double> centers_;
  kernels::Kmeans1dWorkspace kmeans_;
  RowCodebookStep step_;
};

}  // namespace gradq
