// Streams between workers over a real loopback connection.

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "lib/pipeline/chunk_store.h"
#include "services/rpc/server.h"
#include "services/worker/chunk_service.h"
#include "services/worker/remote_chunk_reader.h"

namespace gradq {
namespace {

const StreamKey kKey = {"jobs/1", 0, "forward-0-0", 1, "out"};

Chunk MakeChunk(uint8_t seed, size_t elements) {
  Chunk chunk;
  for (const char* name : {"x", "y"}) {
    auto bytes = AllocateBytes(elements * 4);
    for (size_t i = 0; i < elements * 4; ++i) bytes.get()[i] = std::byte(seed + i % 251);
    chunk.tensors.push_back(
        {name, "float32", {static_cast<int64_t>(elements)}, {std::move(bytes), elements * 4}});
  }
  chunk.sha256 = ChunkDigest(chunk);
  return chunk;
}

RemoteReaderOptions Options(const std::string& token) {
  RemoteReaderOptions options;
  options.read_token = token;
  options.patience = absl::Milliseconds(400);
  options.begin_patience = absl::Milliseconds(200);
  return options;
}

class ChunkServiceTest : public ::testing::Test {
 protected:
  ChunkServiceTest() : store_(*ChunkStore::Open({})), service_(store_.get()) {
    service_.AcceptToken("jobs/1", "secret");
    server_ = *RpcServer::Start({}, {&service_});
  }
  ~ChunkServiceTest() override {
    store_->Shutdown();
    server_->Shutdown(absl::Seconds(1));
  }
  std::unique_ptr<RemoteChunkReader> Reader(const StreamKey& key = kKey, int first = 0,
                                            const std::string& token = "secret") {
    return *RemoteChunkReader::Open(key, server_->address(), Options(token), first);
  }

  std::unique_ptr<ChunkStore> store_;
  ChunkService service_;
  std::unique_ptr<RpcServer> server_;
};

TEST_F(ChunkServiceTest, ChunksLargerThanAMessageArriveWhole) {
  auto writer = *store_->Create(kKey);
  const Chunk large = MakeChunk(1, 700'000);  // 5.6 MB, tensors not at piece boundaries
  const Chunk empty = MakeChunk(2, 0);
  ASSERT_TRUE(writer->Append(large).ok());
  ASSERT_TRUE(writer->Append(empty).ok());
  ASSERT_TRUE(writer->Complete().ok());
  auto reader = Reader();
  auto first = reader->Next();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->sha256, large.sha256);
  ASSERT_EQ(first->tensors.size(), 2u);
  EXPECT_EQ(first->tensors[1].name, "y");
  EXPECT_EQ(first->tensors[1].shape, large.tensors[1].shape);
  EXPECT_EQ(ChunkDigest(*first), large.sha256);
  auto second = reader->Next();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->bytes(), 0);
  EXPECT_TRUE(absl::IsOutOfRange(reader->Next().status()));
}

TEST_F(ChunkServiceTest, ReaderWaitsForTheProducer) {
  auto writer = *store_->Create(kKey);
  std::atomic<int> received = 0;
  std::thread consumer([&, reader = Reader()] {
    for (uint8_t i = 0; i < 5; ++i) {
      auto chunk = reader->Next();
      ASSERT_TRUE(chunk.ok()) << chunk.status();
      ASSERT_EQ(chunk->sha256, MakeChunk(i, 100).sha256);
      ++received;
    }
    ASSERT_TRUE(absl::IsOutOfRange(reader->Next().status()));
  });
  for (uint8_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(writer->Append(MakeChunk(i, 100)).ok());
    while (received <= i) std::this_thread::yield();  // each chunk is sent before the next is made
  }
  ASSERT_TRUE(writer->Complete().ok());
  consumer.join();
}

TEST_F(ChunkServiceTest, ResumesFromAnIndex) {
  auto writer = *store_->Create(kKey);
  for (uint8_t i = 0; i < 4; ++i) ASSERT_TRUE(writer->Append(MakeChunk(i, 10)).ok());
  ASSERT_TRUE(writer->Complete().ok());
  auto reader = Reader(kKey, 2);
  EXPECT_EQ(reader->Next()->sha256, MakeChunk(2, 10).sha256);
  EXPECT_EQ(reader->Next()->sha256, MakeChunk(3, 10).sha256);
  EXPECT_TRUE(absl::IsOutOfRange(reader->Next().status()));
}

TEST_F(ChunkServiceTest, TokenOfAnotherJobIsRefused) {
  auto writer = *store_->Create(kKey);
  ASSERT_TRUE(writer->Append(MakeChunk(0, 10)).ok());
  service_.AcceptToken("jobs/2", "other");
  EXPECT_TRUE(absl::IsPermissionDenied(Reader(kKey, 0, "other")->Next().status()));
  EXPECT_TRUE(absl::IsPermissionDenied(Reader(kKey, 0, "")->Next().status()));
  EXPECT_TRUE(Reader()->Next().ok());
  service_.ForgetJob("jobs/1");
  EXPECT_TRUE(absl::IsPermissionDenied(Reader()->Next().status()));
}

TEST_F(ChunkServiceTest, ConsumerMayComeBeforeProducerAndToken) {
  const StreamKey key = {"jobs/3", 0, "forward-0-0", 1, "out"};
  absl::StatusOr<Chunk> chunk = absl::UnknownError("");
  std::thread consumer([&] {
    RemoteReaderOptions options = Options("late");
    options.begin_patience = absl::Seconds(20);
    chunk = (*RemoteChunkReader::Open(key, server_->address(), options))->Next();
  });
  service_.AcceptToken("jobs/3", "late");
  auto writer = *store_->Create(key);
  ASSERT_TRUE(writer->Append(MakeChunk(9, 10)).ok());
  consumer.join();
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  EXPECT_EQ(chunk->sha256, MakeChunk(9, 10).sha256);
}

TEST_F(ChunkServiceTest, UnknownAndFreedStreamsAreNotFound) {
  EXPECT_TRUE(absl::IsNotFound(Reader()->Next().status()));
  auto writer = *store_->Create(kKey);
  ASSERT_TRUE(writer->Append(MakeChunk(0, 10)).ok());
  auto reader = Reader();
  ASSERT_TRUE(reader->Next().ok());
  std::thread freeing([&] { store_->Free(kKey); });
  EXPECT_TRUE(absl::IsNotFound(reader->Next().status()));
  freeing.join();
}

TEST_F(ChunkServiceTest, CancelEndsAWaitAndTheServerLetsGo) {
  auto writer = *store_->Create(kKey);
  auto reader = Reader();
  absl::Status status;
  std::thread consumer([&] { status = reader->Next().status(); });
  reader->Cancel();
  consumer.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

TEST_F(ChunkServiceTest, ShutdownIsUnavailable) {
  auto writer = *store_->Create(kKey);
  auto reader = Reader();
  absl::Status status;
  std::thread consumer([&] { status = reader->Next().status(); });
  store_->Shutdown();
  consumer.join();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

// A worker whose wire or memory is bad: damages what it sends `damaged` times, and breaks the
// connection in the middle of a chunk `broken` times.
class FaultyService final : public v1::ChunkService::Service {
 public:
  grpc::Status ReadChunks(grpc::ServerContext*, const v1::ReadChunksRequest* request,
                          grpc::ServerWriter<v1::ChunkPiece>* writer) override {
    first_indices.push_back(request->first_index());
    for (int index = request->first_index(); index < 2; ++index) {
      Chunk chunk = MakeChunk(static_cast<uint8_t>(index), 10);
      v1::ChunkPiece piece;
      piece.set_index(index);
      piece.mutable_header()->set_size(chunk.bytes());
      for (const HostTensor& tensor : chunk.tensors) {
        auto* header = piece.mutable_header()->add_tensors();
        header->set_name(tensor.name);
        header->set_dtype(tensor.dtype);
        for (int64_t size : tensor.shape) header->add_shape(size);
        const auto bytes = tensor.data.bytes();
        piece.mutable_data()->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      }
      if (damage_sum && damaged-- > 0) piece.mutable_data()->at(3) ^= 1;
      piece.set_xxh3(Xxh3(piece.data()));
      if (!damage_sum && damaged-- > 0) piece.mutable_data()->at(3) ^= 1;
      if (index == 1 && broken-- > 0) {
        writer->Write(piece);
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "connection lost");
      }
      piece.set_last(true);
      piece.set_sha256(chunk.sha256);
      writer->Write(piece);
    }
    return grpc::Status::OK;
  }
  bool damage_sum = false;  // before the piece's checksum is taken: only the digest shows it
  int damaged = 0;
  int broken = 0;
  std::vector<int> first_indices;
};

class RemoteReader : public ::testing::Test {
 protected:
  RemoteReader() : server_(*RpcServer::Start({}, {&service_})) {}
  std::unique_ptr<RemoteChunkReader> Reader() {
    return *RemoteChunkReader::Open(kKey, server_->address(), Options("secret"));
  }
  FaultyService service_;
  std::unique_ptr<RpcServer> server_;
};

TEST_F(RemoteReader, DamagedPieceIsReadAgain) {
  service_.damaged = 2;
  auto reader = Reader();
  auto chunk = reader->Next();
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  EXPECT_EQ(ChunkDigest(*chunk), MakeChunk(0, 10).sha256);
}

TEST_F(RemoteReader, PersistentDamageIsDataLossAndNeverServed) {
  service_.damaged = 100;
  absl::Status status = Reader()->Next().status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("checksum of a piece"));
  service_.damage_sum = true;
  service_.damaged = 100;
  status = Reader()->Next().status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("digest"));
}

TEST_F(RemoteReader, BrokenConnectionResumesAtTheNextIndex) {
  service_.broken = 2;
  auto reader = Reader();
  ASSERT_TRUE(reader->Next().ok());
  auto second = reader->Next();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->sha256, MakeChunk(1, 10).sha256);
  EXPECT_THAT(service_.first_indices, ::testing::ElementsAre(0, 1, 1));
}

TEST_F(RemoteReader, DeadProducerIsUnavailableAfterAWhile) {
  const std::string address = server_->address();
  server_->Shutdown(absl::ZeroDuration());
  server_.reset();
  auto reader = *RemoteChunkReader::Open(kKey, address, Options("secret"));
  const absl::Status status = reader->Next().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(address));
}

}  // namespace
}  // namespace gradq
