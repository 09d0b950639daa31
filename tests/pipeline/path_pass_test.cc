// Weights along a path, and passes that walk its nodes: order and number of chunks, what a node
// without gradients leaves out, sums over the nodes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/stage_runner.h"
#include "lib/pipeline/tensors.h"
#include "lib/pipeline/weight_source.h"
#include "lib/transformer/numerics.h"
#include "tests/format/random_linear.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kLength = 16;

std::shared_ptr<const Checkpoint> TinyLlama() {
  return *Checkpoint::Open(*OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama"));
}

// A random shard for every linear, small beside the original.
std::map<std::string, std::shared_ptr<const QuantizedLinear>> Shards(
    const ModelGeometry& geometry) {
  std::map<std::string, std::shared_ptr<const QuantizedLinear>> shards;
  uint32_t seed = 1;
  for (const LinearShape& shape : LinearsOf(geometry)) {
    QuantizedLinear linear = RandomLinear(shape.name, Encoding::kLut, 3, shape.out_features,
                                          shape.in_features, 0, ++seed);
    for (uint16_t& value : linear.lut) value = Float16Bits(0.1f * Float16Value(value));
    AddRandomOutliers(&linear, 1000, seed);
    shards[shape.name] = std::make_shared<const QuantizedLinear>(std::move(linear));
  }
  return shards;
}

class PathTest : public ::testing::Test {
 protected:
  PathWeights At(double t) {
    return PathWeights(
        checkpoint_,
        [this](
            const std::string& linear) -> absl::StatusOr<std::shared_ptr<const QuantizedLinear>> {
          ++asked_;
          if (linear == missing_) return absl::NotFoundError("shard is gone");
          return shards_.at(linear);
        },
        t);
  }

  const std::shared_ptr<const Checkpoint> checkpoint_ = TinyLlama();
  const std::map<std::string, std::shared_ptr<const QuantizedLinear>> shards_ =
      Shards(checkpoint_->geometry());
  std::string missing_;
  int asked_ = 0;
};

TEST_F(PathTest, LinearsLieBetweenOriginalAndQuantized) {
  const std::string linear = "model.layers.1.mlp.up_proj";
  const std::vector<float> original = *checkpoint_->ReadFloat32(linear + ".weight");
  const std::vector<float> quantized = Dequantize(*shards_.at(linear));
  for (const double t : {0.0, 0.25, 1.0}) {
    const PathWeights weights = At(t);
    const std::vector<float> between = *weights.tensors().ReadFloat32(linear + ".weight");
    ASSERT_EQ(between.size(), original.size());
    for (size_t i = 0; i < between.size(); ++i) {
      const double w = original[i];
      ASSERT_EQ(between[i], static_cast<float>(w + t * (quantized[i] - w))) << i;
    }
    if (t == 1) {
      EXPECT_EQ(between, quantized);
    }
  }
}

TEST_F(PathTest, EverythingElseIsTheCheckpoints) {
  const PathWeights weights = At(0.5);
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight",
                           "model.layers.2.input_layernorm.weight"}) {
    EXPECT_EQ(*weights.tensors().ReadFloat32(name), *checkpoint_->ReadFloat32(name)) << name;
  }
  EXPECT_EQ(asked_, 0);
  EXPECT_EQ(weights.tensors().tensors().size(), checkpoint_->tensors().size());
  const TensorInfo info = *weights.tensors().Find("model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(info.dtype, DType::kF32);
  EXPECT_EQ(info.bytes, 4 * info.elements());
  std::byte byte;
  EXPECT_TRUE(absl::IsOutOfRange(
      weights.tensors().ReadRange("model.layers.0.mlp.up_proj.weight", info.bytes, {&byte, 1})));
}

TEST_F(PathTest, LostShardIsNamedByItsReader) {
  missing_ = "model.layers.1.mlp.up_proj";
  const PathWeights weights = At(0.5);
  EXPECT_TRUE(LoadedStage::Load(weights, {0, 1}, {}).ok());
  const absl::Status status = LoadedStage::Load(weights, {1, 2}, {}).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("gone"));
}

// Passes over two windows of the slice 1..3 of four, in chunks of one.
class PathPass : public PathTest {
 protected:
  PathPass() {
    for (int64_t i = 0; i < 4 * kLength; ++i) tokens_.push_back(static_cast<int32_t>(i * 37 % 512));
  }

  static StageTask Task(bool backward) {
    StageTask task;
    task.backward = backward;
    task.loss = true;
    task.coefficients = {0.75, 0.25, 0};
    task.first_sequence = 1;
    task.sequences = 2;
    task.length = kLength;
    task.chunk_sequences = 1;
    if (backward) task.accumulate = {"weight_gradient"};
    return task;
  }

  StreamKey Key(const std::string& task, const std::string& lane = "out") {
    return {"jobs/1", 1, task, 1, lane};
  }

  // Nodes at t = 0.5, 1 and 0.
  absl::StatusOr<StageResult> Pass(const std::string& name, StageRange range, const StageTask& task,
                                   ChunkReader* activations, ChunkReader* gradients) {
    StageEnds ends;
    ends.tokens = tokens_;
    ends.activations = activations;
    ends.gradients = gradients;
    ends.open = [&](const std::string& lane) { return store_->Create(Key(name, lane)); };
    ends.progress = [&](int chunks, const std::string&) { chunks_ = chunks; };
    std::unique_ptr<LoadedStage> loaded;
    constexpr double kPoints[] = {0.5, 1, 0};
    return RunStage(
        [&](int node) -> absl::StatusOr<LoadedStage*> {
          loaded.reset();
          GRADQ_ASSIGN_OR_RETURN(loaded, LoadedStage::Load(At(kPoints[node]), range, {}));
          return loaded.get();
        },
        task, ends, &pool_);
  }

  int Length(const std::string& task) {
    auto reader = *store_->Read(Key(task));
    int length = 0;
    while (reader->Next().ok()) ++length;
    return length;
  }

  // weight_gradient of a linear, from its stream.
  at::Tensor Gradient(const std::string& task, const std::string& linear) {
    chunk_ = *(*store_->Read(Key(task, StatisticLane(linear))))->Next();
    return *FindTensor(chunk_, "weight_gradient");
  }

  std::unique_ptr<ChunkStore> store_ = *ChunkStore::Open({});
  ThreadPool pool_{1};
  std::vector<int32_t> tokens_;
  int chunks_ = 0;
  Chunk chunk_;
};

TEST_F(PathPass, StagesMeetNodeByNode) {
  auto whole = Pass("backward-whole", {0, 3}, Task(true), nullptr, nullptr);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(whole->node_loss_sum.size(), 3u);
  EXPECT_EQ(whole->loss_tokens, 2 * (kLength - 1));
  EXPECT_NE(whole->node_loss_sum[0], whole->node_loss_sum[1]);
  EXPECT_EQ(chunks_, 6);

  StageTask forward = Task(false);
  ASSERT_TRUE(Pass("forward-0", {0, 1}, forward, nullptr, nullptr).ok());
  EXPECT_EQ(chunks_, ChunksOf(forward, false));
  EXPECT_EQ(Length("forward-0"), 6) << "all nodes";
  ASSERT_TRUE(
      Pass("forward-1", {1, 2}, forward, (*store_->Read(Key("forward-0"))).get(), nullptr).ok());

  auto last =
      Pass("backward-2", {2, 3}, Task(true), (*store_->Read(Key("forward-1"))).get(), nullptr);
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(last->node_loss_sum, whole->node_loss_sum);
  EXPECT_EQ(chunks_, ChunksOf(Task(true), true));
  EXPECT_EQ(chunks_, 6);
  EXPECT_EQ(Length("backward-2"), 4) << "nothing flows back from a node without gradients";

  auto middle = Pass("backward-1", {1, 2}, Task(true), (*store_->Read(Key("forward-0"))).get(),
                     (*store_->Read(Key("backward-2"))).get());
  ASSERT_TRUE(middle.ok()) << middle.status();
  EXPECT_TRUE(middle->node_loss_sum.empty());
  EXPECT_EQ(chunks_, ChunksOf(Task(true), false));
  EXPECT_EQ(chunks_, 4);
  for (const char* linear : {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"}) {
    EXPECT_TRUE(Gradient("backward-1", linear).equal(Gradient("backward-whole", linear))) << linear;
  }
}

TEST_F(PathPass, NodesAddUpWithTheirCoefficients) {
  const std::string linear = "model.layers.2.mlp.up_proj";
  ASSERT_TRUE(Pass("both", {0, 3}, Task(true), nullptr, nullptr).ok());
  const at::Tensor both = Gradient("both", linear).clone();
  StageTask task = Task(true);
  task.coefficients = {1};
  ASSERT_TRUE(Pass("first", {0, 3}, task, nullptr, nullptr).ok());
  const at::Tensor first = Gradient("first", linear).clone();
  task.coefficients = {1e-30, 1};
  ASSERT_TRUE(Pass("second", {0, 3}, task, nullptr, nullptr).ok());
  const at::Tensor second = Gradient("second", linear);
  const at::Tensor sum = first.mul(0.75).add(second.mul(0.25));
  EXPECT_LT(both.sub(sum).abs().max().item<float>(), 1e-5 * sum.abs().max().item<float>());
  EXPECT_GT(first.sub(second).abs().max().item<float>(), 0.1 * sum.abs().max().item<float>());
}

TEST_F(PathPass, OnlyTheSliceAndTheFirstSequencesCount) {
  const std::string linear = "model.layers.2.mlp.up_proj";
  StageTask task = Task(true);
  task.coefficients = {1};
  task.gradient_sequences = 1;
  ASSERT_TRUE(Pass("of-two", {0, 3}, task, nullptr, nullptr).ok());
  const at::Tensor of_two = Gradient("of-two", linear).clone();
  task.gradient_sequences = 0;
  task.sequences = 1;
  ASSERT_TRUE(Pass("of-one", {0, 3}, task, nullptr, nullptr).ok());
  EXPECT_TRUE(Gradient("of-one", linear).equal(of_two));
  // Other windows, other gradients; windows beyond the end are refused.
  task.first_sequence = 3;
  ASSERT_TRUE(Pass("last", {0, 3}, task, nullptr, nullptr).ok());
  EXPECT_FALSE(Gradient("last", linear).equal(of_two));
  task.sequences = 2;
  EXPECT_TRUE(absl::IsInvalidArgument(Pass("beyond", {0, 3}, task, nullptr, nullptr).status()));
}

TEST_F(PathPass, RefusesGradientsAfterLossOnlyNodes) {
  StageTask task = Task(true);
  task.coefficients = {1, 0, 1};
  EXPECT_TRUE(absl::IsInvalidArgument(Pass("mixed", {0, 3}, task, nullptr, nullptr).status()));
}

TEST_F(PathPass, LostShardEndsThePassWithItsStatus) {
  missing_ = "model.layers.1.mlp.up_proj";
  EXPECT_TRUE(absl::IsNotFound(Pass("lost", {0, 3}, Task(true), nullptr, nullptr).status()));
  EXPECT_FALSE(store_->Contains(Key("lost")));
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
