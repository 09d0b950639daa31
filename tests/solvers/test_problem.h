#pragma once

// Layer problems for solver tests: pseudorandom weights, correlated inputs, and the fp64 objective
// written out.

#include <cstdint>
#include <string>
#include <vector>

#include "lib/format/quantized_linear.h"
#include "lib/solvers/layer_problem.h"

namespace gradq {

struct ProblemShape {
  std::string name;
  int64_t rows = 0;
  int64_t columns = 0;
  int groups = 1;
  int64_t tokens = 0;       // rank of the statistics, at most
  bool zero_row = false;    // weights of row 0 are 0
  bool dead_input = false;  // column 0 of every statistic is 0
};

// All statistics filled in, objective guided, no options.
LayerProblem MakeProblem(const ProblemShape& shape, int bits);

// fp32 [rows, columns] tensor owning a copy.
at::Tensor MakeTensor(const std::vector<float>& values, int64_t rows, int64_t columns);
// Values in [-1, 1).
std::vector<float> Pseudorandoms(int64_t count, uint32_t seed);

// δᵀHδ of one row in plain fp64 loops.
double PlainForm(const float* h, int64_t columns, const float* quantized, const float* weight);
// Σ_k mean over group k's rows, of codes and tables as stored.
double PlainObjective(const LayerProblem& problem, const std::vector<at::Tensor>& matrices,
                      const QuantizedLinear& linear);

}  // namespace gradq
