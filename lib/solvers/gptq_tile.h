#pragma once

// GPTQ (arXiv:2210.17323) on up to 32 rows of one channel group: affine grids per group of columns,
// each column rounded with the feedback of those before it. A row's result depends on its own
// weights and H alone, so tiles may be solved by any thread in any order. Called by quantizer gptq.

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "lib/kernels/feedback_sweep.h"
#include "lib/solvers/sweep_group.h"

namespace gradq {

struct GptqSettings {
  int highest = 0;  // 2^bits − 1
  int64_t group_size = 0;
  // Grids are fitted to the original weights; false: each to the weights as they are when the sweep
  // reaches its group, which needs the columns in their own order.
  bool static_groups = false;
};

// Of the tile's first row on; the layout of QuantizedLinear. The arrays to be written hold round to
// nearest on entry, which rows keep where it has the lower error.
struct GptqRows {
  int rows = 0;
  const float* weights = nullptr;
  const uint8_t* apart = nullptr;  // null: none
  uint8_t* codes = nullptr;
  uint16_t* scale = nullptr;  // fp16 bits
  uint8_t* zero_point = nullptr;
  double* initial = nullptr;  // δᵀHδ of what was there on entry
  double* final = nullptr;    // δᵀHδ of the result as stored
};

class GptqTile {
 public:
  GptqTile(int64_t columns, const GptqSettings& settings);

  // CANCELLED; INVALID_ARGUMENT when fp16 can't hold a scale.
  absl::Status Solve(const SweepGroup& group, const std::function<bool()>& cancelled,
                     const GptqRows& rows);

 private:
  void Load(const GptqRows& rows);
  void LoadStoredErrors(const GptqRows& rows);
  // The grid of columns [first, last) for weights w + error; false when fp16 can't hold the scale.
  bool FitGrids(int64_t grid, int64_t first, int64_t last);
  void Store(const GptqRows& rows, int row);

  int64_t columns_, grids_;
  GptqSettings settings_;
  bool some_apart_ = false;
  kernels::AlignedFloats storage_;
  float* weight_ = nullptr;  // [columns][32]
  float* error_ = nullptr;
  float* active_ = nullptr;
  float* scale_ = nullptr;  // [grids][32]
  float* zero_ = nullptr;
  std::vector<int32_t> grid_of_;  // column -> grid
  std::vector<uint8_t> codes_;    // [columns][32]
};

}  // namespace gradq
