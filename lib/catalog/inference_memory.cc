#include "lib/catalog/inference_memory.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "lib/catalog/plan.h"
#include "lib/catalog/quantizers.h"

namespace gradq {
namespace {

// Rows and columns of a tile, runs and groups of its outliers (lib/kernels/cuda/tile_layout.h).
constexpr double kTileRows = 16;
constexpr double kWindowColumns = 64;
constexpr double kOutlierRun = 4096;
constexpr double kOutlierGroup = 16;
// Columns that one row pointer of the sparse part covers (lib/format/FORMAT.md).
constexpr double kOutlierChunk = 65536;

double D(int64_t value) { return static_cast<double>(value); }
double CeilDiv(double a, double b) { return std::ceil(a / b); }

// One matrix: a linear, or several with the same input.
struct Packed {
  Encoding encoding = Encoding::kLut;
  int bits = 0;
  double group_size = 0;  // kAffine
  double out = 0;
  double in = 0;
  double outliers = 0;
  double bias = 0;  // elements copied beside a fused matrix
};

bool HasTileKernels(const Packed& packed) {
  const bool narrow = packed.bits >= 2 && packed.bits <= 4;
  if (packed.encoding == Encoding::kLut) return narrow;
  return (narrow || packed.bits == 8) && std::fmod(packed.group_size, 16) == 0;
}

double TileBytes(const Packed& packed) {
  const double tiles = CeilDiv(packed.out, kTileRows), rows = tiles * kTileRows;
  const double windows = packed.bits % 4 == 0 ? 1 : packed.bits % 2 == 0 ? 2 : 4;
  const double chunk = windows * kWindowColumns;
  const double codes = rows * CeilDiv(packed.in, chunk) * chunk * packed.bits / 8;
  const double numbers = packed.encoding == Encoding::kLut
                             ? rows * std::exp2(packed.bits) * 2
                             : rows * CeilDiv(packed.in, packed.group_size) * 4;
  if (packed.outliers == 0) return codes + numbers;
  const double lists = tiles * CeilDiv(packed.in, kOutlierRun);
  const double words = lists + 1 + tiles * CeilDiv(packed.in, kWindowColumns) + 1 +
                       packed.outliers + (kOutlierGroup - 1) * std::min(packed.outliers, lists);
  return codes + numbers + 4 * words;
}

// In the order of the artifact's tensors; an outlier takes `entry_bytes`.
double StoredBytes(const Packed& packed, double entry_bytes) {
  const double codes = packed.out * CeilDiv(packed.in * packed.bits, 32) * 4;
  const double numbers = packed.encoding == Encoding::kLut
                             ? packed.out * std::exp2(packed.bits) * 2
                             : packed.out * CeilDiv(packed.in, packed.group_size) * 3;
  return codes + numbers + packed.outliers * entry_bytes;
}

double BytesOn(const Packed& packed, InferenceTarget target) {
  if (target == InferenceTarget::kCpu) {
    const double starts =
        packed.outliers == 0 ? 0 : packed.out * CeilDiv(packed.in, kOutlierChunk) + 1;
    return StoredBytes(packed, 4) + 4 * starts;
  }
  return HasTileKernels(packed) ? TileBytes(packed) : StoredBytes(packed, 10);
}

Packed PackedOf(const ModelGeometry& geometry, LinearKind kind, const Recipe& recipe, int bits) {
  const LinearShape linear = LinearOf(geometry, 0, kind);
  const OptionMap& options = recipe.options;
  Packed packed{.encoding = (*FindQuantizer(recipe.method))->encoding,
                .bits = bits,
                .out = D(linear.out_features),
                .in = D(linear.in_features),
                .bias = linear.bias ? D(linear.out_features) : 0};
  const int grid_bits = options.contains("grid_bits") ? OptionInt(options, "grid_bits") : 0;
  if (grid_bits > 0) {
    // A codebook on an integer grid is stored as that grid, one per row.
    packed.encoding = Encoding::kAffine;
    packed.bits = grid_bits;
    packed.group_size = packed.in;
  } else if (packed.encoding == Encoding::kAffine) {
    packed.group_size = OptionInt(options, "group_size");
  }
  if (recipe.outlier_options.contains("fraction")) {
    packed.outliers =
        std::floor(OptionDouble(recipe.outlier_options, "fraction") * packed.out * packed.in + 0.5);
  }
  return packed;
}

// All linears at one width.
double LinearBytes(const ModelGeometry& geometry, const Recipe& recipe, int bits,
                   InferenceTarget target, double element_bytes) {
  double bytes = 0;
  for (const std::span<const LinearKind> kinds : kInputGroups) {
    std::vector<Packed> packed;
    for (const LinearKind kind : kinds) packed.push_back(PackedOf(geometry, kind, recipe, bits));
    const bool fused =
        target == InferenceTarget::kCuda && kinds.size() > 1 && HasTileKernels(packed.front());
    if (!fused) {
      for (const Packed& one : packed) bytes += BytesOn(one, target);
      continue;
    }
    Packed all = packed.front();
    bool bias = all.bias > 0;
    for (size_t i = 1; i < packed.size(); ++i) {
      all.out += packed[i].out;
      all.outliers += packed[i].outliers;
      bias |= packed[i].bias > 0;
    }
    bytes += TileBytes(all) + (bias ? all.out * element_bytes : 0);
  }
  return bytes * D(geometry.blocks);
}

double KeptElements(const ModelGeometry& geometry) {
  double block = 0;
  for (const TensorShape& tensor : BlockTensorsOf(geometry, 0)) {
    double size = 1;
    for (const int64_t n : tensor.shape) size *= D(n);
    block += size;
  }
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    const LinearShape linear = LinearOf(geometry, 0, static_cast<LinearKind>(kind));
    block -= D(linear.out_features) * D(linear.in_features);
  }
  const double table = D(geometry.vocab_size) * D(geometry.hidden_size);
  return D(geometry.blocks) * block + table * (geometry.tied_embeddings ? 1 : 2) +
         D(geometry.hidden_size);
}

// Between the widths whose average bits enclose the recipe's budget.
double MixedBytes(const ModelGeometry& geometry, const Recipe& recipe, InferenceTarget target,
                  double element_bytes) {
  const double budget = *recipe.average_bits;
  double below_bits = 0, below_bytes = 0;
  for (const Variant& variant : VariantsOf(recipe)) {
    const double bits = AverageBits(geometry, recipe, variant.bits);
    const double bytes = LinearBytes(geometry, recipe, variant.bits, target, element_bytes);
    if (bits >= budget) {
      return below_bytes + (bytes - below_bytes) * (budget - below_bits) / (bits - below_bits);
    }
    below_bits = bits;
    below_bytes = bytes;
  }
  return below_bytes;
}

}  // namespace

double CacheBytesPerToken(const ModelGeometry& geometry, double element_bytes) {
  return 2 * D(geometry.blocks) * D(geometry.kv_heads) * D(geometry.head_dim) * element_bytes;
}

double ScratchBytes(const ModelGeometry& geometry, double element_bytes, int64_t panel_weights) {
  const double hidden = D(geometry.hidden_size), inner = D(geometry.intermediate_size);
  const double queries = D(geometry.heads) * D(geometry.head_dim),
               keys = D(geometry.kv_heads) * D(geometry.head_dim);
  // The residual stream and what a norm makes of it in fp32; the norm's result.
  const double stream = hidden * (3 * 4 + element_bytes);
  // q, k, v; q and k rotated and their halves; the heads' results and those transposed.
  const double attention = (5 * queries + 4 * keys) * element_bytes;
  // gate, up, silu, product, and the sum into the residual stream.
  const double mlp = 4 * inner * element_bytes + hidden * (4 + element_bytes);
  const double tokens = D(kScoringTokens);
  // Logits and log-probabilities of part of a window.
  const double window = D(geometry.max_positions) * D(geometry.vocab_size);
  const double rows = std::min(D(kScoringRowBytes) / 4, window) * (4 + element_bytes);
  double largest = 0;
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    const LinearShape linear = LinearOf(geometry, 0, static_cast<LinearKind>(kind));
    largest = std::max(largest, D(linear.out_features) * D(linear.in_features));
  }
  return tokens * (stream + std::max(attention, mlp)) + rows +
         std::min(D(panel_weights), largest) * element_bytes;
}

InferenceMemory PredictInference(const ModelGeometry& geometry, const Recipe& recipe,
                                 InferenceTarget target) {
  const bool cpu = target == InferenceTarget::kCpu;
  const double element_bytes = cpu ? 4 : 2;
  InferenceMemory memory;
  memory.linears = recipe.average_bits.has_value()
                       ? MixedBytes(geometry, recipe, target, element_bytes)
                       : LinearBytes(geometry, recipe, recipe.bits, target, element_bytes);
  memory.kept = KeptElements(geometry) * element_bytes;
  memory.cache_per_token = CacheBytesPerToken(geometry, element_bytes);
  memory.cache_window = memory.cache_per_token * D(geometry.max_positions);
  memory.scratch =
      ScratchBytes(geometry, element_bytes, cpu ? kHostPanelWeights : kTilePanelWeights);
  return memory;
}

}  // namespace gradq
