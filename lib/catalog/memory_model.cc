#include "lib/catalog/memory_model.h"

#include <algorithm>
#include <cmath>
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
// Columns that one row pointer of the sparse part covers (lib/format/FORMAT.md).
constexpr int64_t kOutlierChunk = 65536;

double D(int64_t value) { return static_cast<double>(value); }

double Weights(const LinearShape& linear) { return D(linear.out_features) * D(linear.in_features); }

std::vector<LinearShape> BlockLinears(const ModelGeometry& geometry) {
  std::vector<LinearShape> linears;
  for (int kind = 0; kind < kLinearsPerBlock; ++kind)
    linears.push_back(LinearOf(geometry, 0, static_cast<LinearKind>(kind)));
  return linears;
}

}  // namespace

MemoryModel::MemoryModel(const PlanInputs& inputs, const Round& round,
                         std::vector<const StatisticRow*> statistics,
                         std::vector<const StatisticRow*> retained)
    : inputs_(inputs),
      statistics_(std::move(statistics)),
      retained_(std::move(retained)),
      backward_(round.backward),
      blended_(round.weights_round >= 0),
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
    block_weights += Weights(linear) * (blended_ ? 2 : 1) + D(linear.out_features);
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

  const int groups = inputs_.recipe.groups;
  for (const LinearShape& linear : linears_) {
    double whole = 0;
    for (const StatisticRow* statistic : statistics_) {
      const double packed =
          statistic->finished_bytes(linear.out_features, linear.in_features, groups);
      const double squares =
          statistic->accumulating_bytes(linear.out_features, linear.in_features, groups);
      memory.accumulating +=
          blocks * (inputs_.whole_squares || inputs_.compute_bytes < 4 ? squares : packed);
      memory.finished += blocks * packed;
      whole += squares;
    }
    for (const StatisticRow* statistic : retained_) {
      memory.retained +=
          blocks * statistic->finished_bytes(linear.out_features, linear.in_features, groups);
      whole += statistic->accumulating_bytes(linear.out_features, linear.in_features, groups);
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
      flop +=
          statistic->flop_per_token(linear.out_features, linear.in_features, inputs_.recipe.groups);
  }
  return flop;
}

double MemoryModel::HeadFlopPerToken() const {
  return 4 * D(inputs_.geometry.hidden_size) * D(inputs_.geometry.vocab_size);
}

double StoredBits(const LinearShape& linear, const QuantizerRow& row, const OptionMap& options,
                  int bits) {
  const double out = D(linear.out_features);
  // A codebook on an integer grid is stored as that grid, one per row.
  const int grid_bits = options.contains("grid_bits") ? OptionInt(options, "grid_bits") : 0;
  const int code_bits = grid_bits > 0 ? grid_bits : bits;
  const double codes = 32 * out * D((linear.in_features * code_bits + 31) / 32);
  if (grid_bits > 0) return codes + 16 * out + 32 * D((linear.out_features * grid_bits + 31) / 32);
  if (row.encoding == Encoding::kLut) return codes + 16 * out * D(int64_t{1} << bits);
  const int64_t size = OptionInt(options, "group_size");
  const double groups = D((linear.in_features + size - 1) / size);
  return codes + groups * (16 * out + 32 * D((linear.out_features * bits + 31) / 32));
}

double OutlierBits(const LinearShape& linear, const Recipe& recipe) {
  if (!recipe.outlier_options.contains("fraction")) return 0;
  const double count =
      std::floor(OptionDouble(recipe.outlier_options, "fraction") * Weights(linear) + 0.5);
  if (count == 0) return 0;
  const int64_t chunks = (linear.in_features + kOutlierChunk - 1) / kOutlierChunk;
  return 32 * count + 32 * D(linear.out_features * chunks + 1);
}

double ArtifactBytes(const PlanInputs& inputs, const QuantizerRow& row) {
  const ModelGeometry& g = inputs.geometry;
  double linears = 0, linear_elements = 0;
  for (const LinearShape& linear : BlockLinears(g)) {
    const double bits = inputs.recipe.average_bits.has_value()
                            ? *inputs.recipe.average_bits * Weights(linear)
                            : StoredBits(linear, row, inputs.recipe.options, inputs.recipe.bits) +
                                  OutlierBits(linear, inputs.recipe);
    linears += bits / 8 + 16;
    linear_elements += Weights(linear);
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

double ShardBytes(const PlanInputs& inputs, const QuantizerRow& row,
                  const std::vector<Round>& program) {
  const std::vector<Variant> variants = VariantsOf(inputs.recipe);
  double bytes = 0;
  for (const LinearShape& linear : BlockLinears(inputs.geometry)) {
    for (const Round& round : program) {
      if (round.solve == RoundSolve::kNone) continue;
      for (int v = 0; v < round.variants; ++v) {
        // A single one of several widths: priced as the widest.
        const int bits = round.variants == 1 ? variants.back().bits : variants[v].bits;
        bytes += (StoredBits(linear, row, inputs.recipe.options, bits) +
                  OutlierBits(linear, inputs.recipe)) /
                     8 +
                 kRecordBytes;
      }
    }
  }
  return bytes * D(inputs.geometry.blocks);
}

double SolveFlop(const PlanInputs& inputs, const QuantizerRow& row,
                 const std::vector<Round>& program) {
  const OptionMap& options = inputs.recipe.options;
  const std::vector<Variant> variants = VariantsOf(inputs.recipe);
  double flop = 0;
  for (const LinearShape& linear : BlockLinears(inputs.geometry)) {
    const double out = D(linear.out_features), in = D(linear.in_features);
    for (const Round& round : program) {
      if (round.solve != RoundSolve::kQuantize) continue;
      for (int v = 0; v < round.variants; ++v) {
        if (row.uses_objective && options.contains("cycles")) {
          // Coordinate descent dominates; each iteration's codebook and objective cost about one
          // product more.
          const double iterations = OptionInt(options, "iterations"),
                       cycles = OptionInt(options, "cycles");
          flop += 2 * out * in * in * ((iterations - 1) * (cycles + 1) + iterations);
        } else if (row.uses_objective) {
          // Error feedback and objectives in fp64; gptvq1d updates its codebooks after each sweep.
          const double sweeps =
              options.contains("iterations") ? OptionInt(options, "iterations") : 1;
          flop += 2 * out * in * in * (2 + 3 * sweeps);
        }
        // Rounding, or the dynamic program of k-means.
        flop += out * in * (row.encoding == Encoding::kAffine ? 4 : 32.0 * variants[v].bits);
      }
    }
  }
  return flop * D(inputs.geometry.blocks);
}

}  // namespace gradq
