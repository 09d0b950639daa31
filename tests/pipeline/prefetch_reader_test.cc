#include "lib/pipeline/prefetch_reader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "lib/pipeline/chunk_store.h"

namespace gradq {
namespace {

const StreamKey kKey = {"jobs/1", 0, "forward-0-0", 1, "out"};

Chunk Bytes(size_t size) {
  return {{{"x", "float32", {static_cast<int64_t>(size / 4)}, {AllocateBytes(size), size}}}, ""};
}

// Counts how far it was read.
class CountingReader : public ChunkReader {
 public:
  explicit CountingReader(std::unique_ptr<ChunkReader> reader) : reader_(std::move(reader)) {}
  absl::StatusOr<Chunk> Next() override {
    auto chunk = reader_->Next();
    ++count;
    return chunk;
  }
  void Cancel() override { reader_->Cancel(); }
  std::atomic<int> count = 0;

 private:
  std::unique_ptr<ChunkReader> reader_;
};

class Prefetch : public ::testing::Test {
 protected:
  std::unique_ptr<ChunkStore> store_ = *ChunkStore::Open({});
  std::unique_ptr<ChunkWriter> writer_ = *store_->Create(kKey);
};

TEST_F(Prefetch, KeepsOrderAndTheEnd) {
  for (size_t i = 1; i <= 5; ++i) ASSERT_TRUE(writer_->Append(Bytes(4 * i)).ok());
  ASSERT_TRUE(writer_->Complete().ok());
  auto source = *store_->Read(kKey);
  PrefetchReader reader(source.get(), nullptr);
  for (int64_t i = 1; i <= 5; ++i) EXPECT_EQ(reader.Next()->bytes(), 4 * i);
  EXPECT_TRUE(absl::IsOutOfRange(reader.Next().status()));
  EXPECT_TRUE(absl::IsOutOfRange(reader.Next().status()));
}

TEST_F(Prefetch, ReadsOneAheadAndNoFurther) {
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(writer_->Append(Bytes(4)).ok());
  CountingReader source(*store_->Read(kKey));
  PrefetchReader reader(&source, nullptr);
  ASSERT_TRUE(reader.Next().ok());
  while (source.count < 2) std::this_thread::yield();
  // Room for a third read, were there no limit.
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  EXPECT_EQ(source.count, 2);
}

TEST_F(Prefetch, AsksWhetherItIsCancelledWhileItWaits) {
  auto source = *store_->Read(kKey);
  std::atomic<bool> cancelled = false;
  PrefetchReader reader(source.get(), [&] { return cancelled.load(); });
  std::thread stopper([&] { cancelled = true; });
  EXPECT_TRUE(absl::IsCancelled(reader.Next().status()));
  stopper.join();
}

TEST_F(Prefetch, ErrorsPassThrough) {
  ASSERT_TRUE(writer_->Append(Bytes(4)).ok());
  auto source = *store_->Read(kKey);
  PrefetchReader reader(source.get(), nullptr);
  ASSERT_TRUE(reader.Next().ok());
  writer_.reset();
  EXPECT_TRUE(absl::IsNotFound(reader.Next().status()));
}

TEST_F(Prefetch, EndsWhileTheSourceWaits) {
  auto source = *store_->Read(kKey);
  auto reader = std::make_unique<PrefetchReader>(source.get(), nullptr);
  reader.reset();
}

}  // namespace
}  // namespace gradq
