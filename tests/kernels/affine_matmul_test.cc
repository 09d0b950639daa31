#include "lib/kernels/affine_matmul.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace gradq::kernels {
namespace {

class AffineMatmulTest : public testing::TestWithParam<std::tuple<int64_t, int>> {
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

TEST_P(AffineMatmulTest, EqualsDirectSum) {
  const int bits = std::get<1>(GetParam());
  const int64_t batch = 6;
  ThreadPool pool(3);
  struct Shape {
    int64_t out, in, group;
  };
  // A short last group, groups on no byte boundary, one group for all, one column.
  for (const auto& [out, in, group] :
       {Shape{70, 300, 128}, {33, 512, 128}, {5, 101, 7}, {40, 1000, 1000}, {3, 1, 128}}) {
    std::mt19937 random(static_cast<uint32_t>(out + in + bits));
    const int64_t words = (in * bits + 31) / 32, groups = (in + group - 1) / group;
    std::vector<uint32_t> packed(out * words, 0);
    std::vector<uint16_t> scale(out * groups);
    std::vector<uint8_t> zero(out * groups);
    std::vector<float> step(out * groups);
    for (int64_t g = 0; g < out * groups; ++g) {
      const auto mantissa = static_cast<uint16_t>(random() % 1024);
      scale[g] = static_cast<uint16_t>(8 << 10 | mantissa);  // 2^-7 · (1 + mantissa / 1024)
      step[g] = (1024.f + static_cast<float>(mantissa)) * 0x1p-17f;
      zero[g] = static_cast<uint8_t>(random() % (1u << bits));
    }
    std::vector<float> dense(out * in);
    for (int64_t r = 0; r < out; ++r) {
      for (int64_t c = 0; c < in; ++c) {
        const uint32_t code = random() & ((1u << bits) - 1);
        for (int bit = 0; bit < bits; ++bit) {
          const int64_t at = c * bits + bit;
          packed[r * words + at / 32] |= (code >> bit & 1) << (at % 32);
        }
        const int64_t g = r * groups + c / group;
        dense[r * in + c] = static_cast<float>(static_cast<int>(code) - zero[g]) * step[g];
      }
    }
    std::vector<float> x(batch * in);
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(random);

    const AffineMatrix matrix(packed, scale, zero, out, in, bits, group);
    std::vector<float> decoded(out * in, NAN), y(batch * out, NAN), alone(batch * out, NAN);
    DequantizeAffineRows(matrix, 0, out, decoded.data(), &pool);
    ASSERT_EQ(decoded, dense) << out << "x" << in;
    AffineMatmul(matrix, x.data(), batch, y.data(), &pool);
    for (int64_t b = 0; b < batch; ++b) {
      AffineMatmul(matrix, x.data() + b * in, 1, alone.data() + b * out, nullptr);
      for (int64_t r = 0; r < out; ++r) {
        double sum = 0, magnitude = 0;
        for (int64_t c = 0; c < in; ++c) {
          const double term = double{dense[r * in + c]} * x[b * in + c];
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[b * out + r], sum, 1e-6 * magnitude + 1e-12) << out << "x" << in;
      }
    }
    EXPECT_EQ(y, alone);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, AffineMatmulTest,
                         testing::Combine(testing::Values(HWY_AVX2, HWY_AVX3, HWY_SSE4),
                                          testing::Range(1, 9)),
                         [](const auto& info) {
                           return std::string(hwy::TargetName(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "bits";
                         });

}  // namespace
}  // namespace gradq::kernels
