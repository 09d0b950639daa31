// A decode step against the transformer's blocks: the same logits for the same tokens, with the
// caches shared between both.

#include "lib/inference/decode_step.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/inference/decode_sequence.h"
#include "lib/inference/packed_linear.h"
#include "lib/inference/torch_status.h"
#include "lib/inference/transformer_model.h"
#include "tests/inference/logits.h"
#include "tests/inference/quantized_folder.h"

namespace gradq {
namespace {

struct Precision {
  at::ScalarType type;
  double tolerance;  // of logits, relative to the largest
  const char* name;
};
const Precision kPrecisions[] = {
    {at::kFloat, 1e-4, "Fp32"}, {at::kHalf, 2e-2, "Fp16"}, {at::kBFloat16, 2e-1, "Bf16"}};

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  EXPECT_TRUE(value.ok()) << value.status();
  GRADQ_CHECK(value.ok());
  return *std::move(value);
}

// The model of a folder in `type`; `folder` dense or quantized.
TransformerModel::Parts LoadParts(const std::string& path, at::ScalarType type) {
  const auto checkpoint = ValueOrDie(Checkpoint::Open(OpenFolderOrDie(path)));
  std::unique_ptr<Artifact> artifact;
  if (checkpoint->quantized()) artifact = ValueOrDie(Artifact::Open(OpenFolderOrDie(path)));
  const TensorSource& source = artifact ? artifact->dense() : *checkpoint;
  // Of products this small threads would only wait.
  at::set_num_threads(1);
  TransformerModel::Parts parts;
  const ModelGeometry& geometry = parts.geometry = checkpoint->geometry();
  parts.embedding = ValueOrDie(LoadEmbedding(source, geometry, at::kCPU, type));
  parts.head = ValueOrDie(LoadHead(source, geometry, at::kCPU, type));
  parts.blocks = std::make_unique<std::vector<BlockWeights>>();
  for (int block = 0; block < geometry.blocks; ++block) {
    parts.blocks->push_back(
        ValueOrDie(LoadBlock(source, geometry, block, at::kCPU, type, artifact == nullptr)));
  }
  if (artifact == nullptr) {
    parts.linears = std::make_unique<DenseLinearOp>(*parts.blocks, 0);
    return parts;
  }
  auto linears =
      std::make_unique<PackedLinearOp>(*parts.blocks, FormOf(at::kCPU, type), at::kCPU, nullptr);
  const LinearKind o[] = {LinearKind::kO}, down[] = {LinearKind::kDown};
  for (int block = 0; block < geometry.blocks; ++block) {
    for (const std::span<const LinearKind> kinds :
         {std::span<const LinearKind>(kQkv), std::span<const LinearKind>(o),
          std::span<const LinearKind>(kGateUp), std::span<const LinearKind>(down)}) {
      std::vector<QuantizedLinear> read;
      for (const LinearKind kind : kinds)
        read.push_back(ValueOrDie(artifact->ReadLinear(LinearName(block, kind))));
      linears->Set(block, kinds, read);
    }
  }
  parts.linears = std::move(linears);
  parts.quantized = true;
  return parts;
}

std::unique_ptr<TransformerModel> LoadModel(const std::string& path, at::ScalarType type,
                                            bool by_step) {
  TransformerModel::Parts parts = LoadParts(path, type);
  parts.by_step = by_step;
  return std::make_unique<TransformerModel>(std::move(parts));
}

// Decodes pieces of `tokens` by both models and compares the logits after each.
void ExpectEqualDecoding(const std::string& path, const Precision& precision,
                         const std::vector<int64_t>& pieces) {
  const auto blocks = LoadModel(path, precision.type, false);
  const auto stepped = LoadModel(path, precision.type, true);
  const auto first = blocks->NewSequence(), second = stepped->NewSequence();
  int64_t count = 0;
  for (const int64_t piece : pieces) count += piece;
  const std::vector<int32_t> tokens = Tokens(count, blocks->geometry().vocab_size);
  for (const int64_t piece : pieces) {
    const auto next = std::span(tokens).subspan(first->tokens(), piece);
    const auto expected = blocks->Decode(*first, next), actual = stepped->Decode(*second, next);
    ASSERT_TRUE(expected.ok() && actual.ok()) << expected.status() << actual.status();
    EXPECT_EQ(first->tokens(), second->tokens());
    EXPECT_LT(Distance(*actual, *expected), precision.tolerance)
        << path << " after " << second->tokens() << " tokens";
  }
}

class DecodeStepTest : public testing::TestWithParam<Precision> {};

// Biases, norms of q and k, shared key heads, rotary scalings, a sliding window of 8.
TEST_P(DecodeStepTest, EveryFamilyAsItsBlocks) {
  for (const char* family : {"llama", "llama-linear-bias", "llama3", "mistral", "qwen2", "qwen3"}) {
    // A prompt by the blocks, then tokens by steps, in between a few by the blocks again.
    ExpectEqualDecoding(StrCat(GRADQ_GOLDEN, "/transformer/", family), GetParam(),
                        {7, 1, 1, 1, 3, 1, 1, 1, 1, 1});
  }
}

// From the first token on, beyond the first capacity of the cache.
TEST_P(DecodeStepTest, CachesGrow) {
  std::vector<int64_t> pieces(3, 1);
  pieces.insert(pieces.end(), {59, 1, 1, 1, 1, 1, 65, 1, 1});
  ExpectEqualDecoding(StrCat(GRADQ_FIXTURES, "/tiny-llama"), GetParam(), pieces);
}

TEST_P(DecodeStepTest, PackedLinears) {
  for (const PlainQuantization& quantization :
       {PlainQuantization{.encoding = Encoding::kLut, .bits = 3, .outliers = true},
        PlainQuantization{Encoding::kAffine, 4}}) {
    const TestFolder folder;
    const std::string artifact = folder.path() + "/artifact";
    WriteQuantizedFolder(StrCat(GRADQ_FIXTURES, "/tiny-llama"), quantization, artifact);
    ExpectEqualDecoding(artifact, GetParam(), {5, 1, 1, 1});
    WriteQuantizedFolder(StrCat(GRADQ_GOLDEN, "/transformer/qwen2"), quantization, artifact + "2");
    ExpectEqualDecoding(artifact + "2", GetParam(), {5, 1, 1, 1});
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, DecodeStepTest, testing::ValuesIn(kPrecisions),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(DecodeStepTest, TheBundledModel) {
  ExpectEqualDecoding(StrCat(GRADQ_FIXTURES, "/docs-llama-6m"), kPrecisions[0], {40, 1, 1, 1});
  ExpectEqualDecoding(StrCat(GRADQ_FIXTURES, "/docs-llama-6m"), kPrecisions[1], {40, 1, 1, 1});
}

TEST(DecodeStepTest, TwoSequencesShareOneStep) {
  const auto model = LoadModel(StrCat(GRADQ_FIXTURES, "/tiny-llama"), at::kHalf, true);
  const std::vector<int32_t> tokens = Tokens(12, 512);
  const auto alone = model->NewSequence();
  std::vector<float> expected;
  for (int i = 0; i < 6; ++i) expected = ValueOrDie(model->Decode(*alone, {&tokens[i], 1}));
  const auto first = model->NewSequence(), second = model->NewSequence();
  std::vector<float> logits;
  for (int i = 0; i < 6; ++i) {
    logits = ValueOrDie(model->Decode(*first, {&tokens[i], 1}));
    ValueOrDie(model->Decode(*second, {&tokens[11 - i], 1}));
  }
  EXPECT_EQ(logits, expected);
}

// Dense linears that fail once, as where memory does not suffice.
class FailingOp : public DenseLinearOp {
 public:
  explicit FailingOp(const std::vector<BlockWeights>& weights) : DenseLinearOp(weights, 0) {}
  at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) override {
    if (calls_left-- == 0) throw c10::OutOfMemoryError({"Apply", "", 0}, "tried 5, free 3");
    return DenseLinearOp::Apply(block, kind, x);
  }
  int calls_left = -1;
};

TEST(DecodeStepTest, AFailedCallLeavesTheSequenceAsItWas) {
  for (const bool by_step : {false, true}) {
    TransformerModel::Parts parts = LoadParts(StrCat(GRADQ_FIXTURES, "/tiny-llama"), at::kFloat);
    auto linears = std::make_unique<FailingOp>(*parts.blocks);
    FailingOp* const failing = linears.get();
    parts.linears = std::move(linears);
    parts.by_step = by_step;
    TransformerModel model(std::move(parts));
    const std::vector<int32_t> tokens = Tokens(300, 512);
    const auto whole = model.NewSequence(), broken = model.NewSequence();
    ValueOrDie(model.Decode(*whole, {tokens.data(), 9}));
    const std::vector<float> expected = ValueOrDie(model.Decode(*whole, {&tokens[9], 1}));

    ValueOrDie(model.Decode(*broken, {tokens.data(), 9}));
    // One token; a prompt of two pieces that fails in the second, with a larger cache by then.
    for (const auto& [count, calls] : {std::pair{1, 10}, {290, 30}}) {
      failing->calls_left = calls;
      const absl::Status status =
          model.Decode(*broken, std::span(tokens).subspan(9, count)).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      EXPECT_NE(status.message().find("tried 5, free 3"), absl::string_view::npos) << status;
      EXPECT_EQ(broken->tokens(), 9);
    }
    failing->calls_left = -1;
    EXPECT_LT(Distance(ValueOrDie(model.Decode(*broken, {&tokens[9], 1})), expected), 2e-6);
  }
}

TEST(CachedAttentionTest, ACacheThatCannotGrowStays) {
  ModelGeometry geometry;
  geometry.blocks = 2;
  geometry.kv_heads = 2;
  geometry.head_dim = 24;
  geometry.max_positions = int64_t{1} << 50;
  CachedAttention attention(geometry, at::kFloat, at::kCPU);
  attention.Reserve(10);
  const void* keys = attention.cache(0).keys.const_data_ptr();
  const int64_t capacity = attention.capacity();
  EXPECT_GE(capacity, 10);
  attention.Reserve(capacity);
  // More than addresses reach.
  const absl::Status status = TorchStatus("growing", [&] {
    attention.Reserve(int64_t{1} << 44);
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(attention.capacity(), capacity);
  EXPECT_EQ(attention.cache(0).keys.const_data_ptr(), keys);
  EXPECT_EQ(attention.cache(1).values.size(2), capacity);
}

TEST(TorchStatusTest, OurOwnErrorsKeepTheirCode) {
  const absl::Status status = TorchStatus("work", []() -> absl::Status {
    ThrowIfError(absl::OkStatus());
    ThrowIfError(absl::UnavailableError("launch failed: 700"));
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::UnavailableError("work: launch failed: 700"));
}

}  // namespace
}  // namespace gradq
