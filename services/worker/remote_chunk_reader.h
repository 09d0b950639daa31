#pragma once

// A ChunkReader over another worker's ChunkService: verifies every piece and chunk, resumes at the
// next index when the connection breaks. One reader thread; Cancel from any.

#include <grpcpp/client_context.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/chunk_service.grpc.pb.h"
#include "lib/pipeline/chunk.h"

namespace gradq {

struct RemoteReaderOptions {
  std::string read_token;
  bool insecure = false;
  // How long a producer that does not answer is tried again before it counts as gone.
  absl::Duration patience = absl::Seconds(15);
  // How long a stream may be unknown, or its token not yet accepted, before the first chunk: the
  // consumer's lease can overtake the producer's.
  absl::Duration begin_patience = absl::Seconds(10);
};

class RemoteChunkReader : public ChunkReader {
 public:
  // INVALID_ARGUMENT: the address. Connects at the first Next().
  static absl::StatusOr<std::unique_ptr<RemoteChunkReader>> Open(const StreamKey& key,
                                                                 const std::string& address,
                                                                 RemoteReaderOptions options,
                                                                 int first_index = 0);
  ~RemoteChunkReader() override;
  absl::StatusOr<Chunk> Next() override;
  void Cancel() override;

 private:
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::ChunkPiece>> stream;
  };
  RemoteChunkReader(StreamKey key, std::string address, RemoteReaderOptions options, int index)
      : key_(std::move(key)),
        address_(std::move(address)),
        options_(std::move(options)),
        index_(index) {}

  bool Begin();
  // OUT_OF_RANGE: the producer says that the stream is complete.
  absl::StatusOr<Chunk> ReadOne();
  absl::Status Close();
  bool cancelled() const;
  // Waits between two tries; false when cancelled.
  bool Pause(absl::Duration duration);

  const StreamKey key_;
  const std::string address_;
  const RemoteReaderOptions options_;
  std::unique_ptr<v1::ChunkService::Stub> stub_;
  int index_;
  bool received_any_ = false;
  mutable std::mutex mutex_;
  std::unique_ptr<Call> call_;
  bool cancelled_ = false;
};

}  // namespace gradq
