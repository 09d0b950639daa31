// Models on a CUDA device against the same models on the CPU: windows, prompts, and single tokens
// by the recorded step. Skipped without a device.

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/inference/model.h"
#include "lib/inference/scoring.h"
#include "lib/kernels/cuda_device.h"
#include "tests/inference/logits.h"
#include "tests/inference/quantized_folder.h"
#include "tests/kernels/device_memory.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Way {
  ComputeType type;
  double tolerance;  // of logits, relative to the largest
  const char* name;
};
const Way kWays[] = {{ComputeType::kFloat16, 5e-3, "Fp16"}, {ComputeType::kBFloat16, 4e-2, "Bf16"}};

std::unique_ptr<Model> LoadOrDie(const std::string& path, const LoadOptions& options) {
  auto model = Model::Load(*OpenFolderOrDie(path), options);
  EXPECT_TRUE(model.ok()) << model.status();
  GRADQ_CHECK(model.ok());
  return *std::move(model);
}

std::vector<float> DecodeOrDie(Model& model, Sequence& sequence, std::span<const int32_t> tokens) {
  auto logits = model.Decode(sequence, tokens);
  EXPECT_TRUE(logits.ok()) << logits.status();
  GRADQ_CHECK(logits.ok());
  return *std::move(logits);
}

class DeviceModelTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    kernels::SetUpDevice();
  }

  LoadOptions OnDevice() const { return {.device = "cuda:0", .compute_type = GetParam().type}; }

  // Prompt, then tokens one by one beyond the first capacity of a cache, then a few together.
  void ExpectEqualDecoding(const std::string& path) {
    const auto host = LoadOrDie(path, {}), device = LoadOrDie(path, OnDevice());
    const auto first = host->NewSequence(), second = device->NewSequence();
    std::vector<int64_t> pieces(80, 1);
    pieces.insert(pieces.begin(), 7);
    pieces.insert(pieces.end(), {5, 1, 1, 1});
    const std::vector<int32_t> tokens = Tokens(95, host->geometry().vocab_size);
    for (const int64_t piece : pieces) {
      if (first->tokens() + piece > host->geometry().max_positions) break;
      const auto next = std::span(tokens).subspan(first->tokens(), piece);
      const std::vector<float> expected = DecodeOrDie(*host, *first, next);
      EXPECT_LT(Distance(DecodeOrDie(*device, *second, next), expected), GetParam().tolerance)
          << path << " after " << first->tokens() << " tokens";
    }
  }

  void ExpectEqualWindows(const std::string& path) {
    const auto host = LoadOrDie(path, {}), device = LoadOrDie(path, OnDevice());
    const int64_t length = std::min<int64_t>(32, host->geometry().max_positions);
    // Few and many tokens at a time: every path of the packed linears.
    for (const int64_t sequences : {1, 4, 48}) {
      const std::vector<int32_t> windows = Tokens(sequences * length, host->geometry().vocab_size);
      const auto expected = ScoreWindows(*host, windows, length, {});
      const auto actual = ScoreWindows(*device, windows, length, {});
      ASSERT_TRUE(expected.ok() && actual.ok()) << expected.status() << actual.status();
      EXPECT_NEAR(std::log(actual->perplexity / expected->perplexity), 0, GetParam().tolerance)
          << path << ", " << sequences << " windows";
    }
  }
};

TEST_P(DeviceModelTest, DenseAsOnTheHost) {
  for (const char* family : {"llama", "llama-linear-bias", "llama3", "mistral", "qwen2", "qwen3"}) {
    ExpectEqualDecoding(StrCat(GRADQ_GOLDEN, "/transformer/", family));
    ExpectEqualWindows(StrCat(GRADQ_GOLDEN, "/transformer/", family));
  }
}

TEST_P(DeviceModelTest, PackedAsOnTheHost) {
  const TestFolder folder;
  int count = 0;
  for (const PlainQuantization& quantization :
       {PlainQuantization{.encoding = Encoding::kLut, .bits = 2, .outliers = true},
        PlainQuantization{.encoding = Encoding::kLut, .bits = 3, .outliers = true},
        PlainQuantization{Encoding::kLut, 4}, PlainQuantization{Encoding::kAffine, 3, 32},
        PlainQuantization{Encoding::kAffine, 8, 32},
        // Decoded by ATen.
        PlainQuantization{.encoding = Encoding::kLut, .bits = 5, .outliers = true}}) {
    for (const std::string& model :
         {StrCat(GRADQ_FIXTURES, "/tiny-llama"), StrCat(GRADQ_GOLDEN, "/transformer/qwen2")}) {
      const std::string artifact = StrCat(folder.path(), "/", count++);
      WriteQuantizedFolder(model, quantization, artifact);
      ExpectEqualDecoding(artifact);
      ExpectEqualWindows(artifact);
    }
  }
}

TEST_P(DeviceModelTest, RecordedStepsRepeatBitForBit) {
  const TestFolder folder;
  WriteQuantizedFolder(StrCat(GRADQ_FIXTURES, "/tiny-llama"),
                       {.encoding = Encoding::kLut, .bits = 3, .outliers = true},
                       folder.path() + "/three");
  const auto model = LoadOrDie(folder.path() + "/three", OnDevice());
  const std::vector<int32_t> tokens = Tokens(70, model->geometry().vocab_size);
  const auto alone = model->NewSequence();
  std::vector<std::vector<float>> expected;
  for (const int32_t& token : tokens) expected.push_back(DecodeOrDie(*model, *alone, {&token, 1}));
  // Sequences take turns, and one of them is dropped while the other goes on.
  const auto first = model->NewSequence();
  auto second = model->NewSequence();
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(DecodeOrDie(*model, *first, {&tokens[i], 1}), expected[i]) << i;
    if (second != nullptr) DecodeOrDie(*model, *second, {&tokens[tokens.size() - 1 - i], 1});
    if (i == 40) second.reset();
  }
}

TEST_P(DeviceModelTest, WhatDoesNotFitIsRefusedAndTheNextLoads) {
  LoadOptions options = OnDevice();
  options.free_bytes = []() -> absl::StatusOr<int64_t> { return 1000; };
  const std::string path = StrCat(GRADQ_FIXTURES, "/tiny-llama");
  EXPECT_EQ(Model::Load(*OpenFolderOrDie(path), options).status().code(),
            absl::StatusCode::kResourceExhausted);
  // The driver's own count of free bytes.
  EXPECT_TRUE(Model::Load(*OpenFolderOrDie(path), OnDevice()).ok());
}

TEST_P(DeviceModelTest, NoSuchDevice) {
  const auto count = kernels::CudaDeviceCount();
  ASSERT_TRUE(count.ok()) << count.status();
  const absl::Status status = CheckComputeDevice("cuda:127");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cuda:127"), HasSubstr(StrCat(*count, " devices"))));
}

INSTANTIATE_TEST_SUITE_P(Types, DeviceModelTest, testing::ValuesIn(kWays),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace gradq
