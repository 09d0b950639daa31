#include "lib/pipeline/stage_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/base/thread_pool.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/tensors.h"
#include "lib/transformer/numerics.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

class StageRunner : public ::testing::Test {
 protected:
  StageRunner() : store_(*ChunkStore::Open({})), pool_(1) {
    checkpoint_ = *Checkpoint::Open(*OpenLocalFolder(GRADQ_FIXTURES "/tiny-llama"));
    tokens_.assign(4 * 16, 3);
  }

  std::unique_ptr<LoadedStage> Load(int first, int end) {
    return *LoadedStage::Load(BaseWeights(checkpoint_), {first, end}, {});
  }
  StageTask Task() {
    StageTask task;
    task.sequences = 4;
    task.length = 16;
    task.chunk_sequences = 1;
    return task;
  }
  StreamKey Key(const std::string& task, const std::string& lane) {
    return {"jobs/1", 0, task, 1, lane};
  }
  StageEnds Ends(const std::string& task) {
    StageEnds ends;
    ends.tokens = tokens_;
    ends.open = [this, task](const std::string& lane) { return store_->Create(Key(task, lane)); };
    return ends;
  }

  std::unique_ptr<ChunkStore> store_;
  ThreadPool pool_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<int32_t> tokens_;
};

TEST_F(StageRunner, ForwardMakesOneChunkPerStepAndReportsEach) {
  auto stage = Load(0, 1);
  StageEnds ends = Ends("forward-0");
  std::vector<int> seen;
  ends.progress = [&](int chunks, const std::string& digest) {
    seen.push_back(chunks);
    EXPECT_EQ(digest.size(), 32u);
  };
  auto result = RunStage(*stage, Task(), ends, &pool_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(seen, ::testing::ElementsAre(1, 2, 3, 4));
  EXPECT_GT(result->compute_seconds, 0);
  auto reader = *store_->Read(Key("forward-0", "out"));
  for (int i = 0; i < 4; ++i) {
    auto chunk = reader->Next();
    ASSERT_TRUE(chunk.ok());
    EXPECT_EQ(chunk->tensors.at(0).name, "x");
    EXPECT_EQ(chunk->tensors[0].shape, (std::vector<int64_t>{1, 16, 64}));
  }
  EXPECT_TRUE(absl::IsOutOfRange(reader->Next().status()));
}

TEST_F(StageRunner, StopsAtTheNextChunkAndAbandonsItsStreams) {
  auto stage = Load(0, 3);
  StageTask task = Task();
  task.backward = true;
  task.accumulate = {"fisher_blocks"};
  StageEnds ends = Ends("backward-0");
  int done = 0;
  ends.progress = [&](int chunks, const std::string&) { done = chunks; };
  ends.cancelled = [&] { return done == 2; };
  EXPECT_TRUE(absl::IsCancelled(RunStage(*stage, task, ends, &pool_).status()));
  EXPECT_EQ(done, 2);
  EXPECT_FALSE(store_->Contains(Key("backward-0", "out")));
  EXPECT_EQ(store_->memory_bytes(), 0);
}

TEST_F(StageRunner, StopsWhileItWaitsForInput) {
  auto stage = Load(1, 3);
  StageTask task = Task();
  task.backward = true;
  auto never = *store_->Create(Key("forward-0", "out"));
  auto reader = *store_->Read(Key("forward-0", "out"));
  StageEnds ends = Ends("backward-1");
  ends.activations = reader.get();
  ends.cancelled = [asked = 0]() mutable { return ++asked > 2; };
  EXPECT_TRUE(absl::IsCancelled(RunStage(*stage, task, ends, &pool_).status()));
}

TEST_F(StageRunner, LostInputIsReportedAsItIs) {
  auto stage = Load(1, 3);
  StageTask task = Task();
  task.backward = true;
  auto writer = *store_->Create(Key("forward-0", "out"));
  auto reader = *store_->Read(Key("forward-0", "out"));
  writer.reset();
  StageEnds ends = Ends("backward-1");
  ends.activations = reader.get();
  EXPECT_TRUE(absl::IsNotFound(RunStage(*stage, task, ends, &pool_).status()));
}

TEST_F(StageRunner, ShortOrMisshapenInputIsDataLoss) {
  auto stage = Load(1, 3);
  StageTask task = Task();
  task.backward = true;
  auto writer = *store_->Create(Key("forward-0", "out"));
  auto bytes = AllocateBytes(16);
  ASSERT_TRUE(writer->Append({{{"x", "float32", {1, 2, 2}, {bytes, 16}}}, ""}).ok());
  ASSERT_TRUE(writer->Complete().ok());
  auto reader = *store_->Read(Key("forward-0", "out"));
  StageEnds ends = Ends("backward-1");
  ends.activations = reader.get();
  EXPECT_TRUE(absl::IsDataLoss(RunStage(*stage, task, ends, &pool_).status()));
  auto tail = *store_->Read(Key("forward-0", "out"), 1);
  ends.activations = tail.get();
  store_->Free(Key("backward-1", ""));
  const absl::Status status = RunStage(*stage, task, ends, &pool_).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("shorter"));
}

TEST_F(StageRunner, AccumulatesOnlyWhatIsAskedFor) {
  auto stage = Load(0, 3);
  StageTask task = Task();
  task.backward = true;
  task.loss = true;
  task.accumulate = {"gram"};
  task.linears = {"model.layers.1.mlp.down_proj"};
  auto result = RunStage(*stage, task, Ends("backward-0"), &pool_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->loss_tokens, 4 * 15);
  EXPECT_TRUE(store_->Contains(Key("backward-0", "stat/model.layers.1.mlp.down_proj")));
  EXPECT_FALSE(store_->Contains(Key("backward-0", "stat/model.layers.0.mlp.down_proj")));
  auto chunk = (*store_->Read(Key("backward-0", "stat/model.layers.1.mlp.down_proj")))->Next();
  ASSERT_TRUE(chunk.ok());
  EXPECT_EQ(chunk->tensors.at(0).name, "gram");
  EXPECT_EQ(chunk->tensors[0].shape, (std::vector<int64_t>{176 * 177 / 2}));
}

TEST_F(StageRunner, RefusesWhatIsNotOfTheStage) {
  auto stage = Load(0, 1);
  StageTask task = Task();
  task.backward = true;
  task.accumulate = {"gram"};
  task.linears = {"model.layers.2.mlp.down_proj"};
  auto none = *store_->Create(Key("backward-1", "out"));
  auto reader = *store_->Read(Key("backward-1", "out"));
  StageEnds ends = Ends("backward-0");
  ends.gradients = reader.get();
  EXPECT_TRUE(absl::IsInvalidArgument(RunStage(*stage, task, ends, &pool_).status()));
  task.linears.clear();
  task.accumulate = {"no_such"};
  EXPECT_TRUE(absl::IsInvalidArgument(RunStage(*stage, task, ends, &pool_).status()));
  EXPECT_FALSE(LoadedStage::Load(BaseWeights(checkpoint_), {2, 4}, {}).ok());
}

TEST(Devices, AreCheckedByName) {
  EXPECT_TRUE(CheckDevice("cpu").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(CheckDevice("quantum")));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckDevice("mps")));
  EXPECT_FALSE(CheckDevice("cuda:99").ok());
}

TEST(CatchTorch, TurnsExceptionsIntoStatus) {
  const auto thrown = [](auto&& error) {
    return CatchTorch("work", [&]() -> absl::Status { throw error; });
  };
  EXPECT_TRUE(absl::IsResourceExhausted(thrown(std::bad_alloc())));
  const absl::Status status = thrown(std::runtime_error(std::string(10'000, 'x')));
  EXPECT_TRUE(absl::IsInternal(status));
  EXPECT_LE(status.message().size(), 2048u);
  const auto tensor = ToTensor({"x", "float32", {2}, {AllocateBytes(8), 8}});
  ASSERT_TRUE(tensor.ok());
  const absl::Status shape = CatchTorch("view", [&] {
    return tensor->view({7}).defined() ? absl::OkStatus() : absl::UnknownError("");
  });
  EXPECT_TRUE(absl::IsInternal(shape));
  EXPECT_THAT(std::string(shape.message()), HasSubstr("view"));
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
