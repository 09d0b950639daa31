// Dense perplexity of the fixtures, from text to number, equals the yardstick's.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/format/checkpoint.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/transformer/stage.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

struct Fixture {
  std::string name;
  int64_t length;
  double perplexity;
};

class PerplexityTest : public testing::TestWithParam<Fixture> {};

TEST_P(PerplexityTest, OfValidationTextEqualsYardstick) {
  constexpr int64_t kWindows = 96, kBatch = 4;
  const auto& [name, length, expected] = GetParam();
  const std::string path = StrCat(GRADQ_FIXTURES, "/", name);
  const auto checkpoint = Checkpoint::Open(*OpenLocalFolder(path));
  ASSERT_TRUE(checkpoint.ok());
  const ModelGeometry& geometry = (*checkpoint)->geometry();
  const auto tokenizer = Tokenizer::Open(*ReadFile(path + "/tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok());
  const auto ids = (*tokenizer)->Encode(*ReadFile(path + "/validation.txt"));
  ASSERT_TRUE(ids.ok());
  const auto windows = CutWindows(*ids, length, kWindows, geometry.vocab_size);
  ASSERT_TRUE(windows.ok()) << windows.status().message();
  const at::Tensor tokens = TokenTensor(*windows, length);

  const auto stage = Stage::Load(
      **checkpoint, geometry, {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)});
  ASSERT_TRUE(stage.ok());
  double loss = 0;
  for (int64_t n = 0; n < kWindows; n += kBatch) {
    const at::Tensor batch = tokens.slice(0, n, n + kBatch);
    loss += (*stage)->LossSum((*stage)->Forward(batch), batch);
  }
  EXPECT_NEAR(std::exp(loss / static_cast<double>(kWindows * (length - 1))), expected,
              1e-5 * expected);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, PerplexityTest,
                         testing::Values(Fixture{"docs-llama-6m", 512, 14.587398},
                                         Fixture{"tiny-llama", 256, 12.686218}),
                         [](const auto& info) {
                           return info.param.name.substr(0, info.param.name.find('-'));
                         });

}  // namespace
}  // namespace gradq
