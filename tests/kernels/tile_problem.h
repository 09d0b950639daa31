#pragma once

// Random packed linears for tests of the tile kernels: canonical tensors, the same in tile order,
// and the exact weights by formulas of FORMAT.md that share no code with the repacking.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "lib/kernels/float16.h"
#include "lib/kernels/tile_matrix.h"

namespace gradq::kernels {

enum class OutlierKind { kNone, kSparse, kOneRow };

struct TileProblemOptions {
  TileEncoding encoding = TileEncoding::kLut;
  int bits = 4;
  int64_t out = 1;
  int64_t in = 1;
  int64_t group_size = 128;  // affine
  OutlierKind outliers = OutlierKind::kNone;
  uint32_t seed = 1;
};

struct TileOutlier {
  int64_t row = 0;
  int64_t column = 0;
  uint16_t value = 0;
};

struct TileProblem {
  TileMatrix matrix;
  std::vector<float> weights;         // [out, in], without outliers
  std::vector<TileOutlier> outliers;  // in order of (row, column)
  // [out, in]: both.
  std::vector<double> WithOutliers(int64_t in) const {
    std::vector<double> sum(weights.begin(), weights.end());
    for (const TileOutlier& o : outliers) sum[o.row * in + o.column] += Float16ToFloat(o.value);
    return sum;
  }
};

inline std::string NameOf(TileEncoding encoding, int bits) {
  return (encoding == TileEncoding::kLut ? "lut" : "affine") + std::to_string(bits);
}

// (encoding, bits) that have kernels.
inline std::vector<std::pair<TileEncoding, int>> TileKinds() {
  std::vector<std::pair<TileEncoding, int>> kinds;
  for (const TileEncoding encoding : {TileEncoding::kLut, TileEncoding::kAffine}) {
    for (int bits = 1; bits <= 8; ++bits) {
      if (HasTileKernels(encoding, bits)) kinds.emplace_back(encoding, bits);
    }
  }
  return kinds;
}

// fp16 bits of a random number: sign, exponent 2^-6 .. 2^-3, all mantissas.
inline uint16_t RandomHalf(std::mt19937& random) {
  const uint32_t bits = random();
  return static_cast<uint16_t>((bits & 0x83ff) | (9 + (bits >> 16) % 4) << 10);
}

inline SparseRows RandomOutliers(const TileProblemOptions& o, std::mt19937& random,
                                 std::vector<TileOutlier>* outliers) {
  std::vector<int32_t> row_ptr = {0};
  std::vector<uint16_t> col;
  std::vector<uint16_t> value;
  const int64_t runs = (o.in + SparseRows::kRun - 1) / SparseRows::kRun;
  for (int64_t r = 0; r < o.out; ++r) {
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t end = std::min(o.in, (run + 1) * SparseRows::kRun);
      for (int64_t c = run * SparseRows::kRun; c < end; ++c) {
        // 0.45 %, and the first and last column of every run of the tile order.
        const bool edge = r % 5 == 0 && (c % kOutlierRun == 0 || c % kOutlierRun == 4095);
        const bool sparse = o.outliers == OutlierKind::kSparse && (edge || random() % 222 == 0);
        const bool full = o.outliers == OutlierKind::kOneRow && r == o.out / 2;
        if (!sparse && !full) continue;
        const uint16_t bits = RandomHalf(random);
        outliers->push_back({r, c, bits});
        col.push_back(static_cast<uint16_t>(c - run * SparseRows::kRun));
        value.push_back(bits);
      }
      row_ptr.push_back(static_cast<int32_t>(col.size()));
    }
  }
  return SparseRows(row_ptr, col, value, o.in);
}

// `given` null: outliers as the options say.
inline TileProblem MakeTileProblem(const TileProblemOptions& o, ThreadPool* pool = nullptr,
                                   const SparseRows* given = nullptr) {
  std::mt19937 random(o.seed * 7919 + static_cast<uint32_t>(o.out * 1000003 + o.in * 101 + o.bits));
  TileProblem problem;
  const SparseRows made = RandomOutliers(o, random, &problem.outliers);
  const SparseRows& sparse = given == nullptr ? made : *given;
  const int64_t words = (o.in * o.bits + 31) / 32;
  const int64_t groups = (o.in + o.group_size - 1) / o.group_size;
  const int64_t entries = int64_t{1} << o.bits;
  std::vector<uint16_t> lut(o.out * entries);
  for (uint16_t& entry : lut) entry = RandomHalf(random);
  std::vector<uint16_t> scale(o.out * groups);
  for (uint16_t& s : scale) s = RandomHalf(random) & 0x7fff;
  std::vector<uint8_t> zero(o.out * groups);
  for (uint8_t& z : zero) z = static_cast<uint8_t>(random() & (entries - 1));
  std::vector<uint32_t> packed(o.out * words);
  problem.weights.reserve(o.out * o.in);
  for (int64_t r = 0; r < o.out; ++r) {
    for (int64_t c = 0; c < o.in; ++c) {
      const uint32_t code = random() >> 7 & (entries - 1);
      for (int bit = 0; bit < o.bits; ++bit) {
        const int64_t at = c * o.bits + bit;
        packed[r * words + at / 32] |= (code >> bit & 1) << (at % 32);
      }
      const int64_t group = r * groups + c / o.group_size;
      problem.weights.push_back(o.encoding == TileEncoding::kLut
                                    ? Float16ToFloat(lut[r * entries + code])
                                    : static_cast<float>(static_cast<int>(code) - zero[group]) *
                                          Float16ToFloat(scale[group]));
    }
  }
  problem.matrix = o.encoding == TileEncoding::kLut
                       ? TileMatrix::FromLut(packed, lut, sparse, o.out, o.in, o.bits, pool)
                       : TileMatrix::FromAffine(packed, scale, zero, sparse, o.out, o.in, o.bits,
                                                o.group_size, pool);
  return problem;
}

}  // namespace gradq::kernels
