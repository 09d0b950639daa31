#include "lib/inference/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

namespace gradq {
namespace {

TEST(SamplerTest, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(SampleToken(std::vector<float>{1, 3, 2, 3}, {}, 0), 1);
  EXPECT_EQ(SampleToken(std::vector<float>{-5}, {}, 9), 0);
}

TEST(SamplerTest, DrawsFollowTheProbabilities) {
  // Probabilities 0.6, 0.3, 0.1 at temperature 1.
  const std::vector<float> logits = {std::log(0.3f), std::log(0.6f), std::log(0.1f)};
  const Sampling sampling = {.temperature = 1, .seed = 3};
  std::map<int32_t, int> counts;
  for (uint64_t step = 0; step < 20000; ++step) ++counts[SampleToken(logits, sampling, step)];
  EXPECT_NEAR(counts[1] / 20000., 0.6, 0.02);
  EXPECT_NEAR(counts[0] / 20000., 0.3, 0.02);
  EXPECT_NEAR(counts[2] / 20000., 0.1, 0.02);
}

TEST(SamplerTest, TemperatureSharpens) {
  const std::vector<float> logits = {0, 1};
  std::map<int32_t, int> counts;
  for (uint64_t step = 0; step < 5000; ++step) {
    ++counts[SampleToken(logits, {.temperature = 0.25, .seed = 1}, step)];
  }
  EXPECT_NEAR(counts[1] / 5000., 1 / (1 + std::exp(-4.0)), 0.01);
}

TEST(SamplerTest, NucleusLeavesTheTailOut) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::map<int32_t, int> counts;
  for (uint64_t step = 0; step < 2000; ++step) {
    ++counts[SampleToken(logits, {.temperature = 1, .top_p = 0.7, .seed = 5}, step)];
  }
  EXPECT_EQ(counts.count(2), 0u);
  EXPECT_NEAR(counts[1] / 2000., 0.375, 0.04);
  // However small the nucleus, one id is in it.
  EXPECT_EQ(SampleToken(logits, {.temperature = 1, .top_p = 1e-9, .seed = 5}, 0), 0);
}

TEST(SamplerTest, SeedAndStepDecide) {
  std::vector<float> logits(100, 0);
  int equal = 0;
  for (uint64_t step = 0; step < 50; ++step) {
    const int32_t token = SampleToken(logits, {.temperature = 1, .seed = 1}, step);
    EXPECT_EQ(token, SampleToken(logits, {.temperature = 1, .seed = 1}, step));
    equal += token == SampleToken(logits, {.temperature = 1, .seed = 2}, step);
  }
  EXPECT_LT(equal, 10);
}

}  // namespace
}  // namespace gradq
