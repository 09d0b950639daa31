#pragma once

// One quantized linear layer: what a solver makes, a shard carries, an artifact stores and a kernel
// multiplies with. Plain value, no libtorch. Layout: lib/format/FORMAT.md.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/catalog/quantizers.h"

namespace gradq {

// Numbers about the solve; they follow from inputs, recipe and numerics class alone.
struct SolveRecord {
  std::string method;
  std::optional<double>
      objective_initial;  // Σ_k (1/|J_k|) Σ_{j∈J_k} δᵀ H̄_k δ, of the fp16-rounded initial table
  std::optional<double> objective_final;          // the same of the result as stored
  std::optional<double> predicted_loss_increase;  // nats per token
  std::vector<double> damping;  // absolute diagonal load tried, per group and step, in order;
                                // empty: none was needed
  std::map<std::string, double>
      numbers;  // method-specific ("iterations_used", ...), keys lower_snake
};

// Columns that one run of 16-bit outlier columns covers.
inline constexpr int64_t kOutlierChunk = int64_t{1} << 16;
// Runs per row.
inline int64_t OutlierChunks(int64_t in_features) {
  return (in_features + kOutlierChunk - 1) / kOutlierChunk;
}

// Weights kept apart in fp16, row by row: what is added to the dense weight of their place, so that
// dense + value is the original weight as exactly as fp16 can say the difference.
struct SparseOutliers {
  // [out · chunks + 1], chunks = ceil(in / 65536): entries of row r, columns 65536·c and up, are
  // row_ptr[r · chunks + c] .. row_ptr[r · chunks + c + 1] - 1. Empty when there are no outliers.
  std::vector<int32_t> row_ptr;
  std::vector<uint16_t> col;    // within the chunk, ascending
  std::vector<uint16_t> value;  // fp16 bits of w − dense
  bool empty() const { return col.empty(); }
};

struct QuantizedLinear {
  std::string name;  // checkpoint name without ".weight"
  Encoding encoding = Encoding::kLut;
  int bits = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  // [out, ceil(in * bits / 32)]; see packing.h.
  std::vector<uint32_t> packed;
  // kLut: fp16 bits, [out, 2^bits], ascending, unused entries repeat the largest used.
  std::vector<uint16_t> lut;
  // kAffine: w = (code - zero_point) * scale; fp16 scales [out, ceil(in / group_size)], zero points
  // [out, ceil(in / group_size)] in [0, 2^bits).
  int64_t group_size = 0;
  std::vector<uint16_t> scale;  // fp16 bits
  std::vector<uint8_t> zero_point;
  SparseOutliers outliers;
  SolveRecord record;

  // Share of the weights kept apart.
  double outlier_fraction() const;
  // Bits per weight counting codes, tables, scales, zero points and outliers.
  double average_bits() const;
  int64_t weights() const { return out_features * in_features; }
};

// "lut", "affine".
std::string_view EncodingName(Encoding encoding);
absl::StatusOr<Encoding> ParseEncoding(std::string_view word);

// Sizes and ranges agree; INVALID_ARGUMENT naming the linear.
absl::Status Validate(const QuantizedLinear& linear);

// The weights the linear stands for, fp32 [out, in]: dense part plus outliers.
std::vector<float> Dequantize(const QuantizedLinear& linear);
// The dense part alone.
std::vector<float> DequantizeDense(const QuantizedLinear& linear);
// Sets `outliers` to the places where `apart` [out, in] is not 0, each with w − dense (rounded to
// fp16). INVALID_ARGUMENT naming the linear when fp16 can't hold a difference.
absl::Status SetOutliers(std::span<const float> weights, std::span<const uint8_t> apart,
                         QuantizedLinear* linear);

// A shard: the linear as one safetensors file in memory, byte-for-byte determined by the value.
std::string SerializeShard(const QuantizedLinear& linear);
absl::StatusOr<QuantizedLinear> ParseShard(std::string_view bytes);

}  // namespace gradq
