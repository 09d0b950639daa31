#include "lib/kernels/tile_matmul_cpu.h"

#include <algorithm>
#include <vector>

#include "lib/kernels/float16.h"

namespace gradq::kernels {
namespace {

float Read(FloatType type, const void* from, int64_t i) {
  if (type == FloatType::kFloat32) return static_cast<const float*>(from)[i];
  const uint16_t bits = static_cast<const uint16_t*>(from)[i];
  return type == FloatType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}

void Write(FloatType type, float value, void* to, int64_t i) {
  if (type == FloatType::kFloat32) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] =
        type == FloatType::kFloat16 ? FloatToFloat16(value) : FloatToBFloat16(value);
  }
}

// Code of (r, column), read bit by bit from the place tile_layout.h gives it.
int CodeAt(const TileView& matrix, int64_t r, int64_t column) {
  const int bits = matrix.bits;
  const int64_t tile = r / kMmaRows;
  const int half = static_cast<int>(r % kMmaRows / 8);
  const int64_t chunk = column / ChunkColumns(bits);
  const int64_t window = column % ChunkColumns(bits) / kWindowColumns;
  const int64_t lane = r % 8 * 4 + column % kWindowColumns / kLaneColumns;
  const auto j = static_cast<int>(column % kLaneColumns);
  int code = 0;
  for (int i = 0; i < bits; ++i) {
    const CodeBit place = PlaceOfCodeBit(matrix.encoding, bits, half, j, i);
    const int64_t word = window * bits + place.word;  // of the lane's words of the chunk
    const int64_t vector = (tile * matrix.chunks + chunk) * VectorsPerChunk(bits) + word / 4;
    const Words4& words = matrix.codes[vector * kWarpLanes + lane];
    code |= static_cast<int>(words.word[word % 4] >> place.bit & 1) << i;
  }
  return code;
}

float TableEntry(const TileView& matrix, int64_t r, int code) {
  const int64_t plane_words = (int64_t{1} << matrix.bits) / 4;
  const uint32_t* low = matrix.tables + r * 2 * plane_words;
  const int shift = code % 4 * 8;
  const uint32_t bits =
      (low[code / 4] >> shift & 0xff) | (low[plane_words + code / 4] >> shift & 0xff) << 8;
  return Float16ToFloat(static_cast<uint16_t>(bits));
}

float AffineWeight(const TileView& matrix, int64_t r, int64_t column, int code) {
  const int64_t group = column / matrix.group_size;
  const uint32_t both =
      matrix.scales[(r / kMmaRows * matrix.groups + group) * kMmaRows + r % kMmaRows];
  const float zero = Float16ToFloat(static_cast<uint16_t>(both >> 16)) - 1024.f;
  return (static_cast<float>(code) - zero) * Float16ToFloat(static_cast<uint16_t>(both));
}

}  // namespace

void DecodeTileRow(const TileView& matrix, int64_t r, float* weights, float* outliers) {
  for (int64_t c = 0; c < matrix.in_features; ++c) {
    const int code = CodeAt(matrix, r, c);
    weights[c] = matrix.encoding == TileEncoding::kLut ? TableEntry(matrix, r, code)
                                                       : AffineWeight(matrix, r, c, code);
  }
  std::fill_n(outliers, matrix.in_features, 0.f);
  if (matrix.outlier_begin == nullptr) return;
  for (int64_t run = 0; run < matrix.runs; ++run) {
    const uint32_t* begin = matrix.outlier_begin + r / kMmaRows * matrix.runs + run;
    for (int64_t i = int64_t{begin[0]} * kOutlierGroup; i < int64_t{begin[1]} * kOutlierGroup;
         ++i) {
      const uint32_t entry = matrix.outliers[i];
      if ((entry >> 12 & 15) != r % kMmaRows) continue;
      outliers[run * kOutlierRun + (entry & 0xfff)] +=
          Float16ToFloat(static_cast<uint16_t>(entry >> 16));
    }
  }
}

void TileMatmulCpu(const TileView& matrix, const TileMatmulArgs& args) {
  const int64_t in = matrix.in_features;
  std::vector<float> x(args.batch * in);
  for (int64_t i = 0; i < args.batch * in; ++i) x[i] = Read(args.type, args.x, i);
  std::vector<float> weights(in);
  std::vector<float> outliers(in);
  for (int64_t r = 0; r < matrix.out_features; ++r) {
    DecodeTileRow(matrix, r, weights.data(), outliers.data());
    for (int64_t b = 0; b < args.batch; ++b) {
      double sum = args.bias == nullptr ? 0. : Read(args.type, args.bias, r);
      for (int64_t c = 0; c < in; ++c)
        sum += (double{weights[c]} + double{outliers[c]}) * double{x[b * in + c]};
      Write(args.type, static_cast<float>(sum), args.y, b * matrix.out_features + r);
    }
  }
}

void TileDequantizeCpu(const TileView& matrix, int64_t begin, int64_t end, FloatType type,
                       void* out) {
  const int64_t in = matrix.in_features;
  std::vector<float> weights(in);
  std::vector<float> outliers(in);
  for (int64_t r = begin; r < end; ++r) {
    DecodeTileRow(matrix, r, weights.data(), outliers.data());
    for (int64_t c = 0; c < in; ++c)
      Write(type, weights[c] + outliers[c], out, (r - begin) * in + c);
  }
}

}  // namespace gradq::kernels
