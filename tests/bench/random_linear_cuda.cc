#include "tests/bench/random_linear_cuda.h"

#include <algorithm>
#include <random>

#include "lib/kernels/float16.h"

namespace gradq {
namespace {

constexpr int64_t kGroupSize = 128;
constexpr float kRange = 0.05f;  // of weights; what a trained model has

// In [0, 1).
float Uniform(std::mt19937_64& random) {
  return static_cast<float>(random() >> 40) / static_cast<float>(1 << 24);
}

void FillTables(RandomLinear& linear, std::mt19937_64& random) {
  const int64_t entries = int64_t{1} << linear.bits;
  std::vector<float> row(static_cast<size_t>(entries));
  linear.lut.reserve(static_cast<size_t>(linear.out_features * entries));
  for (int64_t r = 0; r < linear.out_features; ++r) {
    for (float& entry : row) entry = kRange * (2 * Uniform(random) - 1);
    std::sort(row.begin(), row.end());
    for (const float entry : row) linear.lut.push_back(kernels::FloatToFloat16(entry));
  }
}

void FillGrid(RandomLinear& linear, std::mt19937_64& random) {
  linear.group_size = kGroupSize;
  const int64_t groups = (linear.in_features + kGroupSize - 1) / kGroupSize;
  const auto levels = static_cast<float>((1 << linear.bits) - 1);
  for (int64_t i = 0; i < linear.out_features * groups; ++i) {
    linear.scale.push_back(kernels::FloatToFloat16(kRange * (1 + Uniform(random)) / levels));
    linear.zero_point.push_back(static_cast<uint8_t>(random() % (uint64_t{1} << linear.bits)));
  }
}

kernels::SparseRows RandomOutliers(const RandomLinear& linear, double percent,
                                   std::mt19937_64& random) {
  const int64_t runs =
      (linear.in_features + kernels::SparseRows::kRun - 1) / kernels::SparseRows::kRun;
  std::vector<int32_t> row_ptr = {0};
  std::vector<uint16_t> col, value;
  // Gaps of 1 .. 2/p - 1 columns, 1/p on average.
  const auto gaps = static_cast<uint64_t>(std::max(1.0, 200 / percent - 1));
  for (int64_t r = 0; r < linear.out_features; ++r) {
    auto c = static_cast<int64_t>(random() % gaps);
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t end = std::min(linear.in_features, (run + 1) * kernels::SparseRows::kRun);
      for (; c < end; c += 1 + static_cast<int64_t>(random() % gaps)) {
        const float size = kRange * (1 + Uniform(random));
        col.push_back(static_cast<uint16_t>(c - run * kernels::SparseRows::kRun));
        value.push_back(kernels::FloatToFloat16(random() % 2 == 0 ? size : -size));
      }
      row_ptr.push_back(static_cast<int32_t>(col.size()));
    }
  }
  return kernels::SparseRows(row_ptr, col, value, linear.in_features);
}

}  // namespace

RandomLinear MakeRandomLinear(kernels::TileEncoding encoding, int bits, int64_t out_features,
                              int64_t in_features, double outlier_percent, uint64_t seed) {
  RandomLinear linear;
  linear.encoding = encoding;
  linear.bits = bits;
  linear.out_features = out_features;
  linear.in_features = in_features;
  std::mt19937_64 random(seed);
  const int64_t words = (in_features * bits + 31) / 32;
  linear.packed.resize(static_cast<size_t>(out_features * words));
  for (uint32_t& word : linear.packed) word = static_cast<uint32_t>(random());
  if (const int64_t used = in_features * bits % 32; used != 0) {
    for (int64_t r = 1; r <= out_features; ++r) linear.packed[r * words - 1] &= (1u << used) - 1;
  }
  if (encoding == kernels::TileEncoding::kLut) {
    FillTables(linear, random);
  } else {
    FillGrid(linear, random);
  }
  if (outlier_percent > 0) linear.sparse = RandomOutliers(linear, outlier_percent, random);
  return linear;
}

kernels::TileMatrix ToTileMatrix(const RandomLinear& linear, ThreadPool* pool) {
  if (linear.encoding == kernels::TileEncoding::kLut) {
    return kernels::TileMatrix::FromLut(linear.packed, linear.lut, linear.sparse,
                                        linear.out_features, linear.in_features, linear.bits, pool);
  }
  return kernels::TileMatrix::FromAffine(linear.packed, linear.scale, linear.zero_point,
                                         linear.sparse, linear.out_features, linear.in_features,
                                         linear.bits, linear.group_size, pool);
}

}  // namespace gradq
