// Logits and dL/dz of every linear against Hugging Face transformers in fp32, for a small random
// model of each family and the fixtures.

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/format/checkpoint.h"
#include "lib/transformer/stage.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

constexpr double kTolerance = 1e-4;

struct Pass {
  at::Tensor logits;
  double loss_sum = 0;
  std::map<std::string, at::Tensor> dz;
};

Pass RunCheckpoint(const std::string& path, const at::Tensor& tokens) {
  auto folder = OpenLocalFolder(path);
  GRADQ_CHECK(folder.ok());
  auto checkpoint = Checkpoint::Open(*std::move(folder));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const ModelGeometry& geometry = (*checkpoint)->geometry();
  auto stage = Stage::Load(**checkpoint, geometry,
                           {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)});
  EXPECT_TRUE(stage.ok()) << stage.status().message();
  Pass pass;
  auto head = LoadHead(**checkpoint, geometry, at::kCPU, at::kFloat);
  GRADQ_CHECK(head.ok());
  const at::Tensor x = (*stage)->Forward(tokens);
  pass.logits = Logits(geometry, *head, x);
  const double forward_loss = (*stage)->LossSum(x, tokens);
  pass.loss_sum = (*stage)
                      ->ForwardBackward(tokens, {}, tokens, (*stage)->linears(),
                                        [&](const Observation& o) {
                                          pass.dz[LinearName(o.block, o.kind)] = o.dz;
                                        })
                      .loss_sum;
  EXPECT_NEAR(pass.loss_sum, forward_loss, 1e-5 * forward_loss);
  return pass;
}

double Sum(const at::Tensor& losses) {
  const at::Tensor wide = losses.to(at::kDouble);
  return wide.sum().item<double>();
}

class SmallModelTest : public testing::TestWithParam<std::string> {};

TEST_P(SmallModelTest, LogitsAndGradientsMatchTransformers) {
  const std::string path = StrCat(GRADQ_GOLDEN, "/transformer/", GetParam());
  const GoldenFile golden(path + "/golden.safetensors");
  const Pass pass = RunCheckpoint(path, golden.Get("tokens"));
  EXPECT_LT(ScaledDistance(pass.logits, golden.Get("logits")), kTolerance);
  const double loss = Sum(golden.Get("losses"));
  EXPECT_NEAR(pass.loss_sum, loss, 1e-5 * loss);
  EXPECT_EQ(pass.dz.size(), 2u * kLinearsPerBlock);
  for (const auto& [name, dz] : pass.dz) {
    EXPECT_LT(ScaledDistance(dz, golden.Get("dz/" + name)), kTolerance) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, SmallModelTest,
                         testing::Values("llama", "llama-linear-bias", "llama3", "mistral", "qwen2",
                                         "qwen3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

class FixtureTest : public testing::TestWithParam<std::string> {};

TEST_P(FixtureTest, ProbesOfLogitsAndGradientsMatchTransformers) {
  const GoldenFile golden(StrCat(GRADQ_GOLDEN, "/transformer/", GetParam(), ".safetensors"));
  Pass pass = RunCheckpoint(StrCat(GRADQ_FIXTURES, "/", GetParam()), golden.Get("tokens"));
  const double loss = Sum(golden.Get("losses"));
  EXPECT_NEAR(pass.loss_sum, loss, 1e-5 * loss);
  std::map<std::string, at::Tensor> all = {{"logits", pass.logits}};
  for (const auto& [name, dz] : pass.dz) all["dz/" + name] = dz;
  for (const auto& [name, tensor] : all) {
    const int64_t step = golden.Get(name + "/step").item<int>();
    EXPECT_LT(
        ScaledDistance(tensor.reshape({-1}).slice(0, 0, {}, step), golden.Get(name + "/probes")),
        kTolerance)
        << name;
    const double norm = golden.Get(name + "/norm").item<float>();
    EXPECT_NEAR(tensor.to(at::kDouble).norm().item<double>(), norm, kTolerance * norm) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, FixtureTest, testing::Values("tiny-llama", "docs-llama-6m"),
                         [](const auto& info) {
                           return info.param.substr(0, info.param.find('-'));
                         });

}  // namespace
}  // namespace gradq
