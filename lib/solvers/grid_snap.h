#pragma once

// Puts the codebooks of a solved linear on integer grids, so that formats which know only scale and
// zero point can hold it: per row the codewords move to distinct points of a grid of 2^grid_bits
// equal steps, chosen by the objective's own quadratic form, and the assignments are solved again
// on the moved codebook. The result has grid_bits bits and one group per row. Called by SolveLayer
// for quantizers with the option grid_bits. Compute thread.

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "lib/format/quantized_linear.h"
#include "lib/solvers/layer_problem.h"

namespace gradq {

// A grid of one row: value of code q is (q − zero) · scale.
struct RowGrid {
  uint16_t scale = 0;  // fp16 bits, positive
  int zero = 0;
  double cost = 0;  // change of δᵀHδ by the move, assignments kept
};

// The best grid found for the ascending codewords `table`, and the ascending grid code of each in
// `codes`, distinct where codewords differ. With G = PᵀHP `gram` [n, n] and s = PᵀH(ŵ − w) `slope`
// the move d of the codewords costs dᵀGd + 2 sᵀd. `target`: where the codewords would best be (a
// search starts at its roundings). n distinct codewords need n ≤ 2^grid_bits.
RowGrid FitRowGrid(std::span<const double> table, std::span<const double> target,
                   std::span<const double> gram, std::span<const double> slope, int grid_bits,
                   std::span<uint8_t> codes);

// `lut`: a result of one of the LUT quantizers for `problem`. Uses the matrices that the objective
// minimises; a method without them its fisher_diagonal. CANCELLED; INVALID_ARGUMENT when the grid
// has fewer points than the codebooks.
absl::StatusOr<QuantizedLinear> SnapToGrid(const LayerProblem& problem, const QuantizedLinear& lut,
                                           int grid_bits, const SolveContext& context);

}  // namespace gradq
