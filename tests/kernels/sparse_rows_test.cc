// Products and decoded rows of packed matrices that carry sparse outliers, against plain sums in
// fp64.

#include "lib/kernels/sparse_rows.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "lib/kernels/affine_matmul.h"
#include "lib/kernels/lut_matmul.h"

namespace gradq::kernels {
namespace {

struct Entry {
  int64_t row;
  int64_t column;
  float value;
};

// Rows with no, few and many entries, first and last columns among them.
std::vector<Entry> RandomEntries(int64_t out, int64_t in, std::mt19937& random) {
  std::vector<Entry> entries;
  for (int64_t r = 0; r < out; ++r) {
    const int64_t count = r % 3 == 0 ? 0 : std::min<int64_t>(in, r % 3 == 1 ? 5 : 40);
    std::vector<int64_t> columns;
    for (int64_t i = 0; i < count; ++i) columns.push_back(static_cast<int64_t>(random() % in));
    if (count > 0) columns.insert(columns.end(), {0, in - 1});
    std::sort(columns.begin(), columns.end());
    columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
    for (const int64_t column : columns) {
      // Sixteenths, which fp16 holds exactly.
      entries.push_back(
          {r, column, static_cast<float>(static_cast<int>(random() % 129) - 64) / 16});
    }
  }
  return entries;
}

// Written here without the code under test: value = sign · mantissa / 1024 · 2^e.
uint16_t HalfBits(float value) {
  if (value == 0) return 0;
  int exponent = 0;
  const float mantissa = std::frexp(std::abs(value), &exponent);  // in [1/2, 1)
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 |
                               (static_cast<int>(mantissa * 2048) - 1024));
}

SparseRows MakeSparse(const std::vector<Entry>& entries, int64_t out, int64_t in) {
  const int64_t runs = (in + 65535) / 65536;
  std::vector<int32_t> row_ptr(out * runs + 1, 0);
  std::vector<uint16_t> col, value;
  for (const Entry& entry : entries) {
    for (size_t p = entry.row * runs + entry.column / 65536 + 1; p < row_ptr.size(); ++p)
      ++row_ptr[p];
    col.push_back(static_cast<uint16_t>(entry.column % 65536));
    value.push_back(HalfBits(entry.value));
  }
  return SparseRows(row_ptr, col, value, in);
}

LutMatrix MakeLut(int64_t out, int64_t in, int bits, std::mt19937& random) {
  const int64_t words = (in * bits + 31) / 32;
  std::vector<uint32_t> packed(out * words);
  for (uint32_t& word : packed) word = static_cast<uint32_t>(random());
  const int used = static_cast<int>((in * bits - 1) % 32 + 1);
  for (int64_t r = 0; used < 32 && r < out; ++r) packed[r * words + words - 1] &= (1u << used) - 1;
  std::vector<uint16_t> lut(out << bits);
  for (uint16_t& entry : lut) entry = static_cast<uint16_t>(0x2800 + random() % 0x400);
  return LutMatrix(packed, lut, out, in, bits);
}

AffineMatrix MakeAffine(int64_t out, int64_t in, int bits, std::mt19937& random) {
  const int64_t words = (in * bits + 31) / 32, group = 48, groups = (in + group - 1) / group;
  std::vector<uint32_t> packed(out * words);
  for (uint32_t& word : packed) word = static_cast<uint32_t>(random());
  std::vector<uint16_t> scale(out * groups);
  for (uint16_t& entry : scale) entry = static_cast<uint16_t>(0x2400 + random() % 0x400);
  std::vector<uint8_t> zero(out * groups);
  for (uint8_t& entry : zero) entry = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  return AffineMatrix(packed, scale, zero, out, in, bits, group);
}

void Multiply(const LutMatrix& matrix, const float* x, int64_t batch, float* y, ThreadPool* pool) {
  LutMatmul(matrix, x, batch, y, pool);
}
void Multiply(const AffineMatrix& matrix, const float* x, int64_t batch, float* y,
              ThreadPool* pool) {
  AffineMatmul(matrix, x, batch, y, pool);
}
void Decode(const LutMatrix& matrix, float* out) {
  DequantizeLutRows(matrix, 0, matrix.out_features(), out, nullptr);
}
void Decode(const AffineMatrix& matrix, float* out) {
  DequantizeAffineRows(matrix, 0, matrix.out_features(), out, nullptr);
}

template <typename Matrix>
void Check(Matrix matrix, std::mt19937& random) {
  const int64_t out = matrix.out_features(), in = matrix.in_features(), batch = 7;
  std::vector<float> expected(out * in), decoded(out * in);
  Decode(matrix, expected.data());
  const int64_t dense_bytes = matrix.bytes();
  const std::vector<Entry> entries = RandomEntries(out, in, random);
  for (const Entry& entry : entries) expected[entry.row * in + entry.column] += entry.value;
  matrix.SetSparse(MakeSparse(entries, out, in));
  EXPECT_GE(matrix.bytes(), dense_bytes + static_cast<int64_t>(entries.size()) * 4);
  Decode(matrix, decoded.data());
  ASSERT_EQ(decoded, expected) << out << "x" << in;

  std::normal_distribution<float> normal;
  std::vector<float> x(batch * in), y(batch * out, NAN);
  for (float& value : x) value = normal(random);
  ThreadPool three(3);
  Multiply(matrix, x.data(), batch, y.data(), &three);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t r = 0; r < out; ++r) {
      double sum = 0, magnitude = 0;
      for (int64_t c = 0; c < in; ++c) {
        const double term = double{expected[r * in + c]} * x[b * in + c];
        sum += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(y[b * out + r], sum, 2e-6 * magnitude + 1e-12)
          << out << "x" << in << " row " << r << " batch " << b;
    }
  }
  // Row by row of x on one thread: the same bits.
  std::vector<float> alone(batch * out, NAN);
  for (int64_t b = 0; b < batch; ++b)
    Multiply(matrix, x.data() + b * in, 1, alone.data() + b * out, nullptr);
  EXPECT_EQ(alone, y);
}

class SparseRowsTest : public testing::TestWithParam<std::tuple<int64_t, int>> {
 protected:
  void SetUp() override {
    const int64_t target = std::get<0>(GetParam());
    if (!(hwy::SupportedTargets() & target)) GTEST_SKIP() << "this machine lacks the target";
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  void TearDown() override {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

TEST_P(SparseRowsTest, EqualsPlainSums) {
  const int bits = std::get<1>(GetParam());
  std::mt19937 random(static_cast<uint32_t>(bits));
  // Two runs of columns in the last.
  for (const auto& [out, in] :
       {std::pair<int64_t, int64_t>{1, 1}, {5, 31}, {150, 700}, {7, 70001}}) {
    Check(MakeLut(out, in, bits, random), random);
    Check(MakeAffine(out, in, bits, random), random);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, SparseRowsTest,
                         testing::Combine(testing::Values(HWY_AVX2, HWY_AVX3, HWY_SSE4),
                                          testing::Values(2, 3, 4, 5)),
                         [](const auto& info) {
                           return std::string(hwy::TargetName(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "bits";
                         });

}  // namespace
}  // namespace gradq::kernels
