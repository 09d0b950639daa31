#pragma once

// LNQ on the coupled objective E_a of lib/solvers/coupled_model.h: from the uncoupled solution
// down, for several shrinkages a side by side. Each round
//   1. proposes for every row an error-feedback rounding to its codebook, with the target moved by
//      the other rows' errors, w̃_j = w_j − (1 − a) Σ_{j'≠j} (O_jj' / O_jj) δ_j', and takes what
//      lowers E_a, row after row;
//   2. sweeps: two-sided coordinate descent, ŵ_ji ← nearest codeword to ŵ_ji − (gradient /
//      curvature), over tiles of rows × columns in a wavefront;
//   3. corrects the codebooks, row after row.
// 1 and 3 never raise E_a; 2 might, where tiles of one diagonal work against each other. Where the
// end is not below the start, the start is the result.
// Compute thread; the pool's threads take tiles, fixed by shape alone, and every sum has a fixed
// order, so results have the same bits for any number of threads and of shrinkages.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "lib/kernels/coupled_tile.h"
#include "lib/solvers/coupled_model.h"
#include "lib/solvers/layer_problem.h"

namespace gradq {

// Codes [rows, columns] and fp16 bits of the tables [rows, levels], ascending in each row.
struct CoupledSolution {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> table;
  double objective_before = 0;  // E_a of the start
  double objective_after = 0;   // of this
};

class CoupledDescent {
 public:
  // All borrowed. `apart` [rows, columns] or null.
  CoupledDescent(const CoupledModel& model, const float* weight, const uint8_t* apart, int levels,
                 const SolveContext& context);
  ~CoupledDescent();

  // One solution per shrinkage, each below 1, after `rounds` rounds. CANCELLED.
  absl::StatusOr<std::vector<CoupledSolution>> Descend(std::span<const uint8_t> codes,
                                                       std::span<const uint16_t> table,
                                                       std::span<const double> shrinkages,
                                                       int rounds);

  // One sweep alone, codebooks as they are: what its oracle in the tests is held against.
  CoupledSolution SweepOnce(std::span<const uint8_t> codes, std::span<const uint16_t> table,
                            double shrinkage);

 private:
  using Matrix = std::vector<float>;  // [rows, columns] unless said otherwise
  static constexpr int kWholePool = -1;
  // A solution on its way down, with one shrinkage.
  struct Walk {
    int worker = kWholePool;  // the one thread that goes, or kWholePool
    float shrinkage = 1;
    std::vector<uint8_t> codes;
    Matrix table;     // [rows, levels]
    Matrix error;     // Δ
    Matrix product;   // Δ M
    Matrix own;       // a · δ_j N_k; empty with one group
    Matrix gradient;  // half the gradient of E_a, where a step has filled it in
    // A proposed change of Δ, the same times M, and a times N_k.
    Matrix change, change_product, change_own;
    std::vector<uint8_t> change_codes;
    std::vector<uint8_t> proposed;      // [rows]
    Matrix sums;                        // of a block of rows in the codebook step
    std::vector<int64_t> tile_changes;  // [tiles of a diagonal]
  };
  struct Workspace;

  int64_t tiles(int64_t length) const {
    return (length + kernels::kCoupledTile - 1) / kernels::kCoupledTile;
  }
  // body(item, worker) for every item, on the walk's thread or on the pool.
  void ForItems(const Walk& walk, int64_t items,
                absl::FunctionRef<void(int64_t item, int worker)> body) const;

  void Start(std::span<const uint8_t> codes, std::span<const uint16_t> table);
  void Begin(double shrinkage, Walk* walk) const;
  CoupledSolution DescendOne(double shrinkage, int rounds, int worker);
  // Steps; each leaves codes, error, product and own agreeing with each other.
  void Multiply(Walk& walk) const;
  void FillGradients(Walk& walk) const;
  double Evaluate(Walk& walk) const;
  void ProposeRoundings(Walk& walk, const FeedbackOrder& order);
  void TakeProposals(Walk& walk) const;
  bool Sweep(Walk& walk) const;
  void CorrectCodebooks(Walk& walk) const;
  void Store(const Walk& walk, CoupledSolution* solution) const;

  void ErrorsOfCodes(Walk& walk, int64_t row) const;
  void MultiplyRows(const Walk& walk, int64_t first, int64_t count, const float* change,
                    float* product, float* own) const;
  void GradientRows(Walk& walk, int64_t first, int64_t count) const;
  void ProposeTile(Walk& walk, int64_t first, const FeedbackOrder& order, Workspace& work) const;
  double Gain(const Walk& walk, int64_t row) const;
  void TakeRow(Walk& walk, int64_t row, int64_t block_end) const;
  void SpreadBlock(Walk& walk, int64_t block) const;
  int64_t SweepTile(Walk& walk, int64_t row_tile, int64_t column_tile) const;
  void PushTile(Walk& walk, int64_t row_tile, int64_t column_tile) const;
  void SumBuckets(Walk& walk, int64_t row, int64_t place) const;
  bool CorrectRow(Walk& walk, int64_t row, int64_t place) const;
  bool Cancelled() const { return context_.cancelled && context_.cancelled(); }

  const CoupledModel& model_;
  const float* weight_;
  const uint8_t* apart_;
  int levels_;
  const SolveContext& context_;
  int64_t rows_, columns_;
  Walk start_;
  std::vector<Workspace> workspaces_;
};

}  // namespace gradq
