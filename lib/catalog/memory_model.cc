#include "lib/catalog/memory_model.h"

#include <algorithm>
#include <utility>

namespace gradq {
namespace {

// Code and heaps of libtorch, MKL and gRPC, thread stacks, allocator slack of one worker: 140 MB
// were measured before the first product, 200 after.
constexpr double kProcessBytes = 256e6;
// Chunks of activations and gradients a worker holds at once: read ahead, in work, being sent.
constexpr double kChunksInFlight = 4;
// Of gradq.json and the safetensors header, per linear.
constexpr double kRecordBytes = 1024;

double D(int64_t value) { return static_cast<double>(value); }

double Weights(const LinearShape& linear) { return D(linear.out_features) * D(linear.in_features); }

std::vector<LinearShape> BlockLinears(const ModelGeometry& geometry) {
  std::vector<LinearShape> linears;
  for (int kind = 0; kind < kLinearsPerBlock; ++kind)
    linears.push_back(LinearOf(geometry, 0, static_cast<LinearKind>(kind)));
  return linears;
}

}  // namespace

MemoryModel::MemoryModel(const PlanInputs& inputs, std::vector<const StatisticRow*> statistics,
                         bool backward)
    : inputs_(inputs),
      statistics_(std::move(statistics)),
      backward_(backward),
      linears_(BlockLinears(inputs.geometry)) {}

double MemoryModel::GraphElementsPerToken() const {
  const ModelGeometry& g = inputs_.geometry;
  const double hidden = D(g.hidden_size), queries = D(g.heads * g.head_dim),
               keys = D(g.kv_heads * g.head_dim);
  // Residual input and middle, per norm its input in fp32, scaled value and result, the two sums.
  const double residual = 10 * hidden;
  // q, k, v; q and k halves for rotary and their products; k and v repeated for the heads; result
  // and its transpose; log-sum-exp.
  const double attention =
      6 * queries + 6 * keys + (g.heads == g.kv_heads ? 0 : 2 * queries) + D(g.heads);
  // gate, up, silu, product.
  const double mlp = 4 * D(g.intermediate_size);
  return residual + attention + mlp;
}

StageMemory MemoryModel::OfStage(int first, int end, bool recompute) const {
  const ModelGeometry& g = inputs_.geometry;
  const double blocks = end - first;
  const bool is_first = first == 0, is_last = end == static_cast<int>(g.blocks);
  const double tokens = D(std::min(inputs_.chunk_sequences, inputs_.sequences)) * D(inputs_.length);
  const double chunk = tokens * D(g.hidden_size) * 4;
  const double embedding = D(g.vocab_size) * D(g.hidden_size);

  StageMemory memory;
  double block_weights = 2 * D(g.hidden_size) + 2 * D(g.head_dim);
  for (const LinearShape& linear : linears_)
    block_weights += Weights(linear) + D(linear.out_features);
  memory.weights = D(inputs_.compute_bytes) * (blocks * block_weights + (is_first ? embedding : 0) +
                                               (is_last && backward_ ? embedding : 0));

  const double block_graph = tokens * GraphElementsPerToken() * D(inputs_.compute_bytes);
  // Gradients of the widest tensors of one block live beside the graph during its backward.
  const double transient = tokens * (2 * D(g.intermediate_size) + 4 * D(g.hidden_size)) * 4;
  if (!backward_) {
    memory.graph = block_graph;
  } else if (recompute) {
    memory.graph = blocks * chunk + block_graph + transient;
  } else {
    memory.graph = blocks * block_graph + transient;
  }
  // Logits, log-probabilities and their gradients.
  if (is_last && backward_)
    memory.graph =
        std::max(memory.graph + chunk, memory.graph - transient + 4 * 4 * tokens * D(g.vocab_size));

  for (const LinearShape& linear : linears_) {
    double whole = 0;
    for (const StatisticRow* statistic : statistics_) {
      const double packed =
          statistic->finished_bytes(linear.out_features, linear.in_features, inputs_.groups);
      const double squares =
          statistic->accumulating_bytes(linear.out_features, linear.in_features, inputs_.groups);
      memory.accumulating +=
          blocks * (inputs_.whole_squares || inputs_.compute_bytes < 4 ? squares : packed);
      memory.finished += blocks * packed;
      whole += squares;
    }
    // Unfolded statistics, and weights, reconstruction, products, best so far in fp32, codes.
    memory.solve = std::max(memory.solve, whole + 28 * Weights(linear));
  }
  memory.streams = kChunksInFlight * chunk * (backward_ ? 2 : 1) + kProcessBytes;
  return memory;
}

double MemoryModel::ForwardFlopPerToken() const {
  const ModelGeometry& g = inputs_.geometry;
  double products = 0;
  for (const LinearShape& linear : linears_) products += 2 * Weights(linear);
  // Scores and mixture over half the window on average.
  const double reach = g.sliding_window > 0 ? std::min(D(g.sliding_window), D(inputs_.length) / 2)
                                            : D(inputs_.length) / 2;
  return products + 4 * D(g.heads * g.head_dim) * reach;
}

double MemoryModel::BackwardFlopPerToken() const {
  double products = 0;
  for (const LinearShape& linear : linears_) products += 2 * Weights(linear);
  // Attention's backward recomputes the scores: five products where the forward has two.
  const double attention = ForwardFlopPerToken() - products;
  return products + 2.5 * attention;
}

double MemoryModel::StatisticsFlopPerToken() const {
  double flop = 0;
  for (const LinearShape& linear : linears_) {
    for (const StatisticRow* statistic : statistics_)
      flop += statistic->flop_per_token(linear.out_features, linear.in_features, inputs_.groups);
  }
  return flop;
}

double MemoryModel::HeadFlopPerToken() const {
  return 4 * D(inputs_.geometry.hidden_size) * D(inputs_.geometry.vocab_size);
}

double ArtifactBytes(const PlanInputs& inputs, const QuantizerRow& row, const OptionMap& options) {
  const ModelGeometry& g = inputs.geometry;
  double linears = 0, linear_elements = 0;
  for (const LinearShape& linear : BlockLinears(g)) {
    const double out = D(linear.out_features), in = D(linear.in_features);
    const double words = D((linear.in_features * inputs.bits + 31) / 32);
    linears += out * words * 4 + 16;
    linear_elements += out * in;
    if (row.encoding == Encoding::kLut) {
      linears += out * D(int64_t{1} << inputs.bits) * 2;
    } else {
      const int64_t size = OptionInt(options, "group_size");
      const double groups = D((linear.in_features + size - 1) / size);
      linears += groups * (out * 2 + D((linear.out_features * inputs.bits + 31) / 32) * 4);
    }
  }
  double elements = 0;
  for (const TensorShape& tensor : BlockTensorsOf(g, 0)) {
    double size = 1;
    for (const int64_t n : tensor.shape) size *= D(n);
    elements += size;
  }
  const double embeddings = D(g.vocab_size) * D(g.hidden_size) * (g.tied_embeddings ? 1 : 2);
  const double kept = D(g.blocks) * (elements - linear_elements) + embeddings + D(g.hidden_size);
  const double records = D(g.blocks) * kLinearsPerBlock * kRecordBytes;
  return D(g.blocks) * linears + kept * D(inputs.source_bytes) + D(inputs.small_files_bytes) +
         records;
}

double SolveFlop(const PlanInputs& inputs, const QuantizerRow& row, const OptionMap& options) {
  double flop = 0;
  for (const LinearShape& linear : BlockLinears(inputs.geometry)) {
    const double out = D(linear.out_features), in = D(linear.in_features);
    if (row.uses_objective) {
      // Coordinate descent dominates; each iteration's codebook and objective cost about one
      // product more.
      const double iterations = OptionInt(options, "iterations"),
                   cycles = OptionInt(options, "cycles");
      flop += 2 * out * in * in * ((iterations - 1) * (cycles + 1) + iterations);
    }
    // Rounding, or the dynamic program of k-means.
    flop += out * in * (row.encoding == Encoding::kAffine ? 4 : 32.0 * inputs.bits);
  }
  return flop * D(inputs.geometry.blocks);
}

}  // namespace gradq
