#include "tests/solvers/test_problem.h"

#include <ATen/ops/empty_ops.h>

#include <algorithm>
#include <cmath>

namespace gradq {

std::vector<float> Pseudorandoms(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  uint32_t state = seed * 2654435761u + 12345u;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return values;
}

at::Tensor MakeTensor(const std::vector<float>& values, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  at::Tensor tensor = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(sizes),
                                                          at::kFloat, {}, at::kCPU, {}, {});
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<float>());
  return tensor;
}

LayerProblem MakeProblem(const ProblemShape& shape, int bits) {
  LayerProblem problem;
  problem.name = "model.layers.0.test_proj";
  problem.bits = bits;
  problem.groups = {shape.rows, shape.groups};
  problem.loss_price = 0.5;
  std::vector<float> weight = Pseudorandoms(shape.rows * shape.columns, 1);
  for (float& w : weight) w = w * w * w;  // heavier in the middle, as trained weights are
  if (shape.zero_row) std::fill_n(weight.begin(), shape.columns, 0.0f);
  problem.weight = MakeTensor(weight, shape.rows, shape.columns);

  // Neighbouring inputs share half of their value, so that errors can make up for each other.
  std::vector<float> inputs = Pseudorandoms(shape.tokens * shape.columns, 2);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    float* x = inputs.data() + t * shape.columns;
    for (int64_t j = 1; j < shape.columns; ++j) x[j] += 0.7f * x[j - 1];
    if (shape.dead_input) x[0] = 0.0f;
  }
  for (int k = 0; k <= shape.groups; ++k) {
    const std::vector<float> scale = Pseudorandoms(shape.tokens, 10 + k);
    std::vector<float> h(shape.columns * shape.columns, 0.0f);
    for (int64_t i = 0; i < shape.columns; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = 0.0;
        for (int64_t t = 0; t < shape.tokens; ++t) {
          const float* x = inputs.data() + t * shape.columns;
          sum += static_cast<double>(x[i]) * x[j] * (k == shape.groups ? 1.0 : scale[t] * scale[t]);
        }
        h[i * shape.columns + j] = h[j * shape.columns + i] = static_cast<float>(sum);
      }
    }
    at::Tensor matrix = MakeTensor(h, shape.columns, shape.columns);
    if (k == shape.groups) {
      problem.gram = matrix;
    } else {
      problem.fisher_blocks.push_back(matrix);
    }
  }
  std::vector<float> fisher = Pseudorandoms(shape.rows * shape.columns, 3);
  for (float& value : fisher) value *= value;
  if (shape.zero_row) std::fill_n(fisher.begin(), shape.columns, 0.0f);
  problem.fisher_diagonal = MakeTensor(fisher, shape.rows, shape.columns);
  // Σ over tokens of dz dzᵀ, neighbouring channels alike.
  std::vector<float> gradients = Pseudorandoms(shape.tokens * shape.rows, 5);
  std::vector<float> fisher_of_outputs(shape.rows * shape.rows, 0.0f);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    float* dz = gradients.data() + t * shape.rows;
    for (int64_t j = 1; j < shape.rows; ++j) dz[j] += 0.5f * dz[j - 1];
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t j = 0; j < shape.rows; ++j)
        fisher_of_outputs[i * shape.rows + j] += dz[i] * dz[j];
    }
  }
  problem.output_fisher = MakeTensor(fisher_of_outputs, shape.rows, shape.rows);
  problem.weight_gradient =
      MakeTensor(Pseudorandoms(shape.rows * shape.columns, 4), shape.rows, shape.columns);
  return problem;
}

double PlainForm(const float* h, int64_t columns, const float* quantized, const float* weight) {
  double form = 0.0;
  for (int64_t i = 0; i < columns; ++i) {
    double product = 0.0;
    for (int64_t j = 0; j < columns; ++j) {
      product += h[i * columns + j] * (static_cast<double>(quantized[j]) - weight[j]);
    }
    form += product * (static_cast<double>(quantized[i]) - weight[i]);
  }
  return form;
}

double PlainObjective(const LayerProblem& problem, const std::vector<at::Tensor>& matrices,
                      const QuantizedLinear& linear) {
  const std::vector<float> quantized = Dequantize(linear);
  const float* weight = problem.weight.const_data_ptr<float>();
  const int64_t columns = problem.weight.size(1);
  double total = 0.0;
  for (int k = 0; k < problem.groups.groups; ++k) {
    const float* h = matrices[matrices.size() == 1 ? 0 : k].const_data_ptr<float>();
    double sum = 0.0;
    for (int64_t row = problem.groups.begin(k); row < problem.groups.begin(k + 1); ++row) {
      sum += PlainForm(h, columns, quantized.data() + row * columns, weight + row * columns);
    }
    total += sum / static_cast<double>(problem.groups.size(k));
  }
  return total;
}

}  // namespace gradq
