// Models as gradq-inference runs them: against logits of Hugging Face transformers, with the cache
// against whole windows, packed against the same weights dense.

#include "lib/inference/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/inference/transformer_model.h"
#include "tests/inference/quantized_folder.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

std::unique_ptr<Model> LoadOrDie(const std::string& path, ThreadPool* pool = nullptr) {
  auto model = Model::Load(*OpenFolderOrDie(path), {.pool = pool});
  EXPECT_TRUE(model.ok()) << model.status();
  GRADQ_CHECK(model.ok());
  return *std::move(model);
}

std::vector<int32_t> Tokens(int64_t count, int64_t vocabulary, uint32_t seed = 1) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) {
    seed = seed * 1664525u + 1013904223u;
    token = static_cast<int32_t>((seed >> 8) % vocabulary);
  }
  return tokens;
}

// max |a - b| over rows of log-probabilities.
double Distance(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double distance = 0;
  for (size_t i = 0; i < a.size(); ++i)
    distance = std::max(distance, std::abs(double{a[i]} - b[i]));
  return distance;
}

std::vector<float> WindowRows(Model& model, const std::vector<int32_t>& tokens, int64_t sequences) {
  EXPECT_TRUE(model.RunWindows(tokens, sequences).ok());
  const auto rows = model.LogProbabilities(0, static_cast<int64_t>(tokens.size()));
  EXPECT_TRUE(rows.ok());
  return {rows->begin(), rows->end()};
}

std::vector<float> LogSoftmax(std::vector<float> logits) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  for (float& logit : logits) logit = static_cast<float>(logit - std::log(sum));
  return logits;
}

class FamilyTest : public testing::TestWithParam<std::string> {
 protected:
  std::string path() const { return StrCat(GRADQ_GOLDEN, "/transformer/", GetParam()); }
};

TEST_P(FamilyTest, WindowsMatchTransformers) {
  const GoldenFile golden(path() + "/golden.safetensors");
  const at::Tensor tokens = golden.Get("tokens").to(at::kInt).contiguous();
  const at::Tensor expected = golden.Get("logits").log_softmax(-1).contiguous();
  const auto model = LoadOrDie(path());
  EXPECT_FALSE(model->quantized());
  const int32_t* ids = tokens.const_data_ptr<int32_t>();
  const std::vector<float> rows = WindowRows(*model, {ids, ids + tokens.numel()}, tokens.size(0));
  EXPECT_LT(Distance(rows, {expected.const_data_ptr<float>(), rows.size()}), 1e-4);
}

TEST_P(FamilyTest, CacheGivesWhatWindowsGive) {
  const auto model = LoadOrDie(path());
  const int64_t vocabulary = model->geometry().vocab_size;
  const int64_t length = std::min<int64_t>(model->geometry().max_positions, 40);
  const std::vector<int32_t> tokens = Tokens(length, vocabulary);
  const std::vector<float> rows = WindowRows(*model, tokens, 1);
  // A prompt at once, then single tokens, then a few together.
  for (int round = 0; round < 2; ++round) {
    const auto sequence = model->NewSequence();
    int64_t at = 0;
    for (const int64_t step : {length / 3, int64_t{1}, int64_t{1}, int64_t{5}, int64_t{1}}) {
      const auto logits = model->Decode(*sequence, std::span(tokens).subspan(at, step));
      ASSERT_TRUE(logits.ok()) << logits.status();
      at += step;
      EXPECT_EQ(sequence->tokens(), at);
      EXPECT_LT(
          Distance(LogSoftmax(*logits), std::span(rows).subspan((at - 1) * vocabulary, vocabulary)),
          1e-4)
          << "after " << at;
    }
  }
}

TEST_P(FamilyTest, PackedEqualsItsWeightsDense) {
  ThreadPool pool(2);
  for (const PlainQuantization& quantization :
       {PlainQuantization{Encoding::kLut, 3}, PlainQuantization{Encoding::kLut, 4},
        PlainQuantization{Encoding::kAffine, 4},
        PlainQuantization{.encoding = Encoding::kLut, .bits = 2, .outliers = true},
        PlainQuantization{.encoding = Encoding::kAffine, .bits = 3, .outliers = true}}) {
    const TestFolder folder;
    const std::string artifact_path = folder.path() + "/artifact";
    WriteQuantizedFolder(path(), quantization, artifact_path);
    const auto packed = LoadOrDie(artifact_path, &pool);
    EXPECT_TRUE(packed->quantized());

    auto artifact = Artifact::Open(OpenFolderOrDie(artifact_path));
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    const ModelGeometry& geometry = (*artifact)->geometry();
    TransformerModel::Parts parts;
    parts.geometry = geometry;
    const TensorSource& source = (*artifact)->dense();
    parts.embedding = *LoadEmbedding(source, geometry, at::kCPU, at::kFloat);
    parts.head = *LoadHead(source, geometry, at::kCPU, at::kFloat);
    parts.blocks = std::make_unique<std::vector<BlockWeights>>();
    for (int block = 0; block < geometry.blocks; ++block) {
      parts.blocks->push_back(*LoadBlock(source, geometry, block, at::kCPU, at::kFloat, false));
    }
    for (const LinearShape& shape : LinearsOf(geometry)) {
      const std::vector<float> weights = Dequantize(*(*artifact)->ReadLinear(shape.name));
      at::Tensor tensor = parts.embedding.new_empty({shape.out_features, shape.in_features});
      std::memcpy(tensor.mutable_data_ptr<float>(), weights.data(), weights.size() * sizeof(float));
      (*parts.blocks)[shape.block].weight[static_cast<int>(shape.kind)] = tensor;
    }
    parts.linears = std::make_unique<DenseLinearOp>(*parts.blocks, 0);
    if (quantization.outliers) {
      EXPECT_NEAR((*artifact)->ReadLinear(LinearsOf(geometry)[0].name)->outlier_fraction(), 0.005,
                  5e-4);
    }
    TransformerModel dense(std::move(parts));
    EXPECT_LT(packed->weight_bytes(), dense.weight_bytes());

    const std::vector<int32_t> tokens = Tokens(48, geometry.vocab_size);
    EXPECT_LT(Distance(WindowRows(*packed, tokens, 2), WindowRows(dense, tokens, 2)), 2e-5);
    // Few tokens take the other path: the codes themselves.
    const auto first = packed->NewSequence(), second = dense.NewSequence();
    for (const int64_t step : {3, 1, 1}) {
      const auto ours = packed->Decode(*first, std::span(tokens).subspan(first->tokens(), step));
      const auto theirs = dense.Decode(*second, std::span(tokens).subspan(second->tokens(), step));
      ASSERT_TRUE(ours.ok() && theirs.ok());
      EXPECT_LT(Distance(LogSoftmax(*ours), LogSoftmax(*theirs)), 2e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest,
                         testing::Values("llama", "llama-linear-bias", "llama3", "mistral", "qwen2",
                                         "qwen3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(ModelTest, WrongTokensAndPositionsAreRefused) {
  const auto model = LoadOrDie(StrCat(GRADQ_FIXTURES, "/tiny-llama"));
  const std::vector<int32_t> beyond = {1, 512};
  EXPECT_EQ(model->RunWindows(beyond, 1).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(model->RunWindows(Tokens(513, 512), 1).code(), absl::StatusCode::kOutOfRange);
  const auto sequence = model->NewSequence();
  const auto decode = [&](const std::vector<int32_t>& tokens) {
    return model->Decode(*sequence, tokens).status().code();
  };
  EXPECT_EQ(decode(beyond), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(decode({-1}), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(decode({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(sequence->tokens(), 0);
  EXPECT_EQ(decode(Tokens(512, 512)), absl::StatusCode::kOk);
  EXPECT_EQ(decode({1}), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sequence->tokens(), 512);
}

TEST(ModelTest, SequencesDoNotSeeEachOther) {
  const auto model = LoadOrDie(StrCat(GRADQ_FIXTURES, "/tiny-llama"));
  const std::vector<int32_t> a = Tokens(20, 512, 1), b = Tokens(20, 512, 2);
  const auto alone = model->NewSequence();
  std::vector<float> expected;
  for (const int32_t token : a) expected = *model->Decode(*alone, {&token, 1});
  const auto first = model->NewSequence(), second = model->NewSequence();
  std::vector<float> logits;
  for (size_t i = 0; i < a.size(); ++i) {
    logits = *model->Decode(*first, {&a[i], 1});
    ASSERT_TRUE(model->Decode(*second, {&b[i], 1}).ok());
  }
  EXPECT_EQ(logits, expected);
}

TEST(ModelTest, FoldersThatAreNoModel) {
  const TestFolder empty;
  const auto model = Model::Load(*OpenFolderOrDie(empty.path()), {});
  EXPECT_FALSE(model.ok());
  EXPECT_NE(model.status().message().find("config.json"), absl::string_view::npos)
      << model.status();
}

TEST(ModelTest, Devices) {
  EXPECT_TRUE(CheckComputeDevice("cpu").ok());
  for (const char* wrong : {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:1x"}) {
    EXPECT_EQ(CheckComputeDevice(wrong).code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
  // More than any machine has, or no CUDA at all.
  EXPECT_EQ(CheckComputeDevice("cuda:127").code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace gradq
