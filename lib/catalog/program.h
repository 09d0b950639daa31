#pragma once

// A job as a list of rounds (design 1), from its recipe alone. A round is a pass over the
// calibration set with some weights, then what is solved or decided from it. Read by the plan, the
// coordinator's task graph and the local run; v1.RoundPlan is its wire form.
//
//   most jobs        quantize
//   gwq, wide scope  quantize (scores, threshold, solve)
//   mixed widths     quantize (three widths, then the choice by price)
//   coupled, auto    pilot (several shrinkages) -> choose by loss on held-out sequences -> quantize
//   pqi              ... -> requantize (PQI, shares) -> detach (PQI, threshold), once per step

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/recipe.h"

namespace gradq {

// Weights of one walk over the sequences: w + t (ŵ - w).
struct PathNode {
  int variant = -1;  // of the shards of weights_round; -1: the decided or only one
  double t = 0;
  double coefficient = 1;  // of this node's gradients in the round's sums; 0: only its loss counts
  bool operator==(const PathNode&) const = default;
};

enum class RoundSolve {
  kNone,
  kQuantize,  // the recipe's quantizer and outlier policy
  kDetach,    // the shards of weights_round, with more weights kept apart
};

enum class RoundDecision {
  kNone,
  kThreshold,  // from the scores' histograms, for the recipe's share of block or model
  kShares,     // a share of outliers per linear, proportional to its mean score
  kShrinkage,  // the variant with the lowest loss over the nodes
  kWidths,     // after the solves: a width per linear, by price under the budget
};

struct Round {
  std::string purpose;  // "quantize", "pilot", "choose", "requantize", "detach"
  // The pass. Nodes with coefficient 0 come last. No nodes: no pass.
  int weights_round = -1;  // whose shards are ŵ; -1: all nodes have t = 0
  std::vector<PathNode> nodes;
  bool backward = false;
  std::vector<std::string> statistics;  // in catalog order
  int64_t first_sequence = 0;           // slice of the calibration set
  int64_t sequences = 0;
  int64_t gradient_sequences = 0;  // weight_gradient: of the first so many; 0: all of the slice
  bool gradient_absolute = false;  // weight_gradient: sum of absolute values per sequence
  // Per linear, from this round's statistics and, beyond round 0, the shards of weights_round: a
  // score per weight, summed up as a histogram.
  bool score = false;
  RoundDecision decision = RoundDecision::kNone;
  RoundSolve solve = RoundSolve::kNone;
  int statistics_round = -1;  // whose statistics the solve reads; -1: none
  int variants = 1;           // shards per solve
  bool pilot = false;         // solves of PilotOf(recipe): they only have to tell variants apart
};

// `recipe` is resolved. INVALID_ARGUMENT when `sequences` are too few (for held-out ones, for the
// policy's samples).
absl::StatusOr<std::vector<Round>> MakeProgram(const Recipe& recipe, int64_t sequences);

// The round whose shards become the artifact: the last that solves.
int FinalRound(const std::vector<Round>& program);
// The round that decides which variant of `round` is taken; -1: it has only one.
int VariantDecisionOf(const std::vector<Round>& program, int round);

// Nodes on [0, 1] and weights that integrate polynomials up to degree 2n - 1 exactly
// (Gauss-Legendre), n in 1..16, nodes rising.
std::vector<PathNode> GaussLegendre(int n);

}  // namespace gradq
