#include "lib/pipeline/chunk_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <thread>

#include "lib/base/digest.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

StreamKey Key(const std::string& task = "forward-0", int64_t attempt = 1,
              const std::string& lane = "out") {
  return {"jobs/1", 0, task, attempt, lane};
}

Chunk MakeChunk(float value, int64_t elements = 256) {
  auto bytes = AllocateBytes(static_cast<size_t>(elements) * sizeof(float));
  for (int64_t i = 0; i < elements; ++i) {
    std::memcpy(bytes.get() + i * sizeof(float), &value, sizeof(float));
  }
  const size_t size = static_cast<size_t>(elements) * sizeof(float);
  return {{{"x", "float32", {elements}, {std::move(bytes), size}}}, ""};
}

float ValueOf(const Chunk& chunk) {
  float value = 0;
  std::memcpy(&value, chunk.tensors.at(0).data.data.get() + chunk.tensors[0].data.size - 4, 4);
  return value;
}

class SpoolFolder {
 public:
  SpoolFolder() : path_(StrCat(::testing::TempDir(), "/gradq-spool-", getpid())) {}
  ~SpoolFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  size_t files() const {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path_)) ++count;
    return count;
  }

 private:
  std::string path_;
};

TEST(ChunkStore, ReadersSeeChunksInOrderAndTheEnd) {
  auto store = *ChunkStore::Open({});
  auto writer = *store->Create(Key());
  for (float value : {1.0f, 2.0f, 3.0f}) {
    const auto digest = writer->Append(MakeChunk(value));
    ASSERT_TRUE(digest.ok());
    EXPECT_EQ(*digest, ChunkDigest(MakeChunk(value)));
  }
  ASSERT_TRUE(writer->Complete().ok());
  auto all = *store->Read(Key());
  auto tail = *store->Read(Key(), 2);
  EXPECT_EQ(ValueOf(*all->Next()), 1.0f);
  EXPECT_EQ(ValueOf(*tail->Next()), 3.0f);
  EXPECT_TRUE(absl::IsOutOfRange(tail->Next().status()));
  EXPECT_EQ(ValueOf(*all->Next()), 2.0f);
  EXPECT_EQ(ValueOf(*all->Next()), 3.0f);
  EXPECT_TRUE(absl::IsOutOfRange(all->Next().status()));
}

TEST(ChunkStore, StreamCannotBeBegunTwiceUntilFreed) {
  auto store = *ChunkStore::Open({});
  auto writer = *store->Create(Key());
  EXPECT_TRUE(absl::IsAlreadyExists(store->Create(Key()).status()));
  store->Free(Key());
  EXPECT_TRUE(store->Create(Key()).ok());
  EXPECT_TRUE(absl::IsNotFound(writer->Append(MakeChunk(1)).status()));
}

TEST(ChunkStore, ReadersWaitForChunksNotYetMade) {
  auto store = *ChunkStore::Open({});
  auto writer = *store->Create(Key());
  std::atomic<int> seen = 0;
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&, reader = std::shared_ptr<ChunkReader>(*store->Read(Key()))] {
      for (float expected = 0; expected < 20; ++expected) {
        auto chunk = reader->Next();
        ASSERT_TRUE(chunk.ok());
        ASSERT_EQ(ValueOf(*chunk), expected);
        ++seen;
      }
      ASSERT_TRUE(absl::IsOutOfRange(reader->Next().status()));
    });
  }
  for (float value = 0; value < 20; ++value) ASSERT_TRUE(writer->Append(MakeChunk(value)).ok());
  ASSERT_TRUE(writer->Complete().ok());
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(seen, 60);
}

TEST(ChunkStore, AbandonedStreamIsGoneForWaitingReaders) {
  auto store = *ChunkStore::Open({});
  auto writer = *store->Create(Key());
  ASSERT_TRUE(writer->Append(MakeChunk(1)).ok());
  auto reader = *store->Read(Key());
  ASSERT_TRUE(reader->Next().ok());
  absl::Status waiting;
  std::thread thread([&] { waiting = reader->Next().status(); });
  writer.reset();
  thread.join();
  EXPECT_TRUE(absl::IsNotFound(waiting)) << waiting.ToString();
  EXPECT_FALSE(store->Contains(Key()));
  EXPECT_EQ(store->memory_bytes(), 0);
}

TEST(ChunkStore, CancelEndsAWait) {
  auto store = *ChunkStore::Open({});
  auto writer = *store->Create(Key());
  auto reader = *store->Read(Key());
  absl::Status waiting;
  std::thread thread([&] { waiting = reader->Next().status(); });
  reader->Cancel();
  thread.join();
  EXPECT_TRUE(absl::IsCancelled(waiting)) << waiting.ToString();
}

TEST(ChunkStore, ShutdownEndsWaits) {
  auto store = *ChunkStore::Open({});
  auto writer = *store->Create(Key());
  int woken = 0;
  store->WhenReady(Key(), 0, [&] { ++woken; });
  EXPECT_EQ(woken, 0);
  store->Shutdown();
  EXPECT_EQ(woken, 1);
  EXPECT_TRUE(absl::IsUnavailable(store->TryGet(Key(), 0).status()));
}

TEST(ChunkStore, FreeWhileReadKeepsWhatTheReaderHolds) {
  SpoolFolder folder;
  auto store =
      *ChunkStore::Open({.memory_limit = 1024, .spool_dir = folder.path(), .spool_limit = 4096});
  auto writer = *store->Create(Key());
  for (float value : {1.0f, 2.0f}) ASSERT_TRUE(writer->Append(MakeChunk(value)).ok());
  ASSERT_TRUE(writer->Complete().ok());
  auto reader = *store->Read(Key());
  const Chunk first = *reader->Next();
  store->Free(Key());
  EXPECT_EQ(ValueOf(first), 1.0f);
  EXPECT_TRUE(absl::IsNotFound(reader->Next().status()));
  EXPECT_EQ(store->memory_bytes(), 0);
  EXPECT_EQ(store->spool_bytes(), 0);
}

TEST(ChunkStore, FreesByLaneAttemptAndJob) {
  auto store = *ChunkStore::Open({});
  std::vector<std::unique_ptr<ChunkWriter>> writers;
  const StreamKey out = Key(), stat = Key("forward-0", 1, "stat/a"), later = Key("forward-0", 2),
                  other = Key("forward-1");
  for (const StreamKey& key : {out, stat, later, other}) {
    writers.push_back(*store->Create(key));
    ASSERT_TRUE(writers.back()->Append(MakeChunk(1)).ok());
  }
  store->Free(stat);
  EXPECT_FALSE(store->Contains(stat));
  EXPECT_TRUE(store->Contains(out));
  store->Free({"jobs/1", 0, "forward-0", 1, ""});
  EXPECT_FALSE(store->Contains(out));
  EXPECT_TRUE(store->Contains(later));
  store->Free({"jobs/2", 0, "", 0, ""});
  EXPECT_TRUE(store->Contains(other));
  store->Free({"jobs/1", 0, "", 0, ""});
  EXPECT_FALSE(store->Contains(later));
  EXPECT_FALSE(store->Contains(other));
  EXPECT_EQ(store->memory_bytes(), 0);
}

TEST(ChunkStore, SpoolsWhatMemoryCannotHold) {
  SpoolFolder folder;
  auto store = *ChunkStore::Open(
      {.memory_limit = 2 * 1024, .spool_dir = folder.path(), .spool_limit = 3 * 1024});
  auto writer = *store->Create(Key());
  for (float value = 0; value < 5; ++value) ASSERT_TRUE(writer->Append(MakeChunk(value)).ok());
  EXPECT_EQ(store->memory_bytes(), 2 * 1024);
  EXPECT_EQ(store->spool_bytes(), 3 * 1024);
  EXPECT_EQ(folder.files(), 0u) << "a killed process must leave nothing behind";
  const auto full = writer->Append(MakeChunk(5));
  EXPECT_TRUE(absl::IsResourceExhausted(full.status()));
  EXPECT_THAT(std::string(full.status().message()), HasSubstr("3072"));
  ASSERT_TRUE(writer->Complete().ok());
  auto reader = *store->Read(Key());
  for (float value = 0; value < 5; ++value) {
    auto chunk = reader->Next();
    ASSERT_TRUE(chunk.ok());
    EXPECT_EQ(ValueOf(*chunk), value);
    EXPECT_EQ(chunk->sha256, ChunkDigest(MakeChunk(value)));
    EXPECT_EQ(chunk->tensors[0].shape, std::vector<int64_t>{256});
  }
  EXPECT_TRUE(absl::IsOutOfRange(reader->Next().status()));
}

TEST(ChunkStore, WithoutSpoolFolderFullMemoryIsAnError) {
  auto store = *ChunkStore::Open({.memory_limit = 1024});
  auto writer = *store->Create(Key());
  ASSERT_TRUE(writer->Append(MakeChunk(0)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(writer->Append(MakeChunk(1)).status()));
}

TEST(ChunkStore, DamagedSpoolIsDataLoss) {
  SpoolFolder folder;
  auto store =
      *ChunkStore::Open({.memory_limit = 0, .spool_dir = folder.path(), .spool_limit = 4096});
  auto writer = *store->Create(Key());
  ASSERT_TRUE(writer->Append(MakeChunk(1)).ok());
  // The file has no name any more; /proc shows it among our open files.
  bool damaged = false;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    if (target.find(StrCat("gradq-spool-", getpid())) == std::string::npos) continue;
    const int fd = std::stoi(entry.path().filename().string());
    ASSERT_EQ(pwrite(fd, "!", 1, 100), 1);
    damaged = true;
  }
  ASSERT_TRUE(damaged);
  EXPECT_TRUE(absl::IsDataLoss(store->TryGet(Key(), 0).status()));
}

TEST(Chunk, TensorBytesRefusesWhatCannotBe) {
  EXPECT_EQ(*TensorBytes("float64", std::vector<int64_t>{3, 4}), 96);
  EXPECT_EQ(*TensorBytes("int32", std::vector<int64_t>{}), 4);
  EXPECT_FALSE(TensorBytes("bfloat16", std::vector<int64_t>{1}).ok());
  EXPECT_FALSE(TensorBytes("float32", std::vector<int64_t>{-1}).ok());
  EXPECT_FALSE(TensorBytes("float32", std::vector<int64_t>{int64_t{1} << 40, 1 << 20}).ok());
}

}  // namespace
}  // namespace gradq
