#include "lib/kernels/lut_matmul.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace gradq::kernels {
namespace {

// Runs a scope on one of the vector targets.
class OnTarget {
 public:
  explicit OnTarget(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~OnTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

struct Problem {
  std::vector<uint32_t> packed;
  std::vector<uint16_t> lut;
  std::vector<uint8_t> codes;
  std::vector<float> table;
  std::vector<float> x;
};

// Tables hold small multiples of 1/64, which fp16 and fp32 hold exactly; written here without the
// code under test.
Problem MakeProblem(int64_t out, int64_t in, int bits, int64_t batch) {
  std::mt19937 random(static_cast<uint32_t>(out * 1000003 + in * 101 + bits));
  Problem problem;
  const int64_t words = (in * bits + 31) / 32;
  problem.packed.assign(out * words, 0);
  for (int64_t r = 0; r < out; ++r) {
    for (int64_t c = 0; c < in; ++c) {
      const uint32_t code = random() & ((1u << bits) - 1);
      problem.codes.push_back(static_cast<uint8_t>(code));
      for (int bit = 0; bit < bits; ++bit) {
        const int64_t at = c * bits + bit;
        problem.packed[r * words + at / 32] |= (code >> bit & 1) << (at % 32);
      }
    }
    for (int e = 0; e < 1 << bits; ++e) {
      const int mantissa = 1024 + static_cast<int>(random() % 1024);  // times 2^-14: in [1/16, 1/8)
      const bool negative = random() & 1;
      problem.table.push_back((negative ? -1.f : 1.f) * static_cast<float>(mantissa) * 0x1p-14f);
      problem.lut.push_back(
          static_cast<uint16_t>((negative ? 0x8000 : 0) | (15 - 4) << 10 | (mantissa - 1024)));
    }
  }
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < batch * in; ++i) problem.x.push_back(normal(random));
  return problem;
}

constexpr int64_t kTargets[] = {HWY_AVX2, HWY_AVX3, HWY_SSE4};

class LutMatmulTest : public testing::TestWithParam<std::tuple<int64_t, int>> {
 protected:
  void SetUp() override {
    if (!(hwy::SupportedTargets() & std::get<0>(GetParam())))
      GTEST_SKIP() << "this machine lacks the target";
  }
};

TEST_P(LutMatmulTest, EqualsDirectSum) {
  const auto [target, bits] = GetParam();
  ThreadPool pool(3);
  // No multiple of anything, exact blocks, blocks with a tail, fewer columns than a vector, one
  // row.
  const std::pair<int64_t, int64_t> shapes[] = {{5, 1},    {3, 7},    {1, 16},    {37, 100},
                                                {33, 512}, {70, 688}, {64, 1024}, {9, 1543}};
  for (const auto& [out, in] : shapes) {
    const int64_t batch = 7;
    const Problem problem = MakeProblem(out, in, bits, batch);
    const LutMatrix matrix(problem.packed, problem.lut, out, in, bits);
    OnTarget on(target);
    std::vector<float> y(batch * out, NAN);
    LutMatmul(matrix, problem.x.data(), batch, y.data(), &pool);
    std::vector<float> dense(out * in, NAN);
    DequantizeLutRows(matrix, 0, out, dense.data(), &pool);
    for (int64_t r = 0; r < out; ++r) {
      for (int64_t c = 0; c < in; ++c) {
        ASSERT_EQ(dense[r * in + c], problem.table[(r << bits) + problem.codes[r * in + c]])
            << out << "x" << in << " at " << r << "," << c;
      }
      for (int64_t b = 0; b < batch; ++b) {
        double sum = 0, magnitude = 0;
        for (int64_t c = 0; c < in; ++c) {
          const double term = double{dense[r * in + c]} * problem.x[b * in + c];
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[b * out + r], sum, 1e-6 * magnitude + 1e-12)
            << out << "x" << in << " row " << r << " batch " << b;
      }
    }
  }
}

TEST_P(LutMatmulTest, OutputDependsOnNeitherThreadsNorBatch) {
  const auto [target, bits] = GetParam();
  const int64_t out = 150, in = 700, batch = 6;
  const Problem problem = MakeProblem(out, in, bits, batch);
  const LutMatrix matrix(problem.packed, problem.lut, out, in, bits);
  OnTarget on(target);
  ThreadPool three(3);
  std::vector<float> together(batch * out), alone(batch * out);
  LutMatmul(matrix, problem.x.data(), batch, together.data(), &three);
  for (int64_t b = 0; b < batch; ++b)
    LutMatmul(matrix, problem.x.data() + b * in, 1, alone.data() + b * out, nullptr);
  EXPECT_EQ(together, alone);
}

TEST_P(LutMatmulTest, RowRangeOfDequantize) {
  const auto [target, bits] = GetParam();
  const Problem problem = MakeProblem(90, 300, bits, 1);
  const LutMatrix matrix(problem.packed, problem.lut, 90, 300, bits);
  OnTarget on(target);
  std::vector<float> some(51 * 300), reference(51 * 300);
  DequantizeLutRows(matrix, 20, 71, some.data(), nullptr);
  DequantizeLutRowsReference(matrix, 20, 71, reference.data());
  EXPECT_EQ(some, reference);
}

INSTANTIATE_TEST_SUITE_P(Targets, LutMatmulTest,
                         testing::Combine(testing::ValuesIn(kTargets), testing::Range(1, 9)),
                         [](const auto& info) {
                           return std::string(hwy::TargetName(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "bits";
                         });

TEST(LutMatrixTest, TakesNoMoreThanTheStoredTensors) {
  for (int bits = 1; bits <= 8; ++bits) {
    const Problem problem = MakeProblem(8, 1000, bits, 1);
    const LutMatrix matrix(problem.packed, problem.lut, 8, 1000, bits);
    EXPECT_EQ(matrix.bytes(),
              static_cast<int64_t>(problem.packed.size() * 4 + problem.lut.size() * 2));
  }
}

TEST(LutMatrixTest, SubnormalAndZeroTableEntries) {
  // 2^-24, the smallest half, and -0.
  const std::vector<uint32_t> packed = {0b01};
  const std::vector<uint16_t> lut = {0x8000, 0x0001};
  const LutMatrix matrix(packed, lut, 1, 2, 1);
  std::vector<float> dense(2);
  DequantizeLutRows(matrix, 0, 1, dense.data(), nullptr);
  EXPECT_EQ(dense[0], 0x1p-24f);
  EXPECT_EQ(dense[1], 0.f);
  DequantizeLutRowsReference(matrix, 0, 1, dense.data());
  EXPECT_EQ(dense[0], 0x1p-24f);
}

}  // namespace
}  // namespace gradq::kernels
