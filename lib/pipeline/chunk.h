#pragma once

// What a stream carries: chunks of named host tensors with a digest, and the two ends of a stream.
// No libtorch, so that services/ can include it beside .pb.h files; tensors.h turns HostTensor into
// at::Tensor without a copy.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

// Bytes that several readers may hold; shared_ptr because a chunk is at once in the store, on the
// wire and inside a tensor.
using Buffer = std::shared_ptr<const std::vector<std::byte>>;

struct HostTensor {
  std::string name;
  std::string dtype;  // "float32", "float64", "int32"
  std::vector<int64_t> shape;
  Buffer data;
};

struct Chunk {
  std::vector<HostTensor> tensors;
  // SHA-256 bytes over the tensors' bytes, in order.
  std::string sha256;
  int64_t bytes() const;
};

// (job, round, task, attempt, lane) of design 2.
struct StreamKey {
  std::string job;
  int round = 0;
  std::string task;
  int64_t attempt = 0;
  std::string lane;
  auto operator<=>(const StreamKey&) const = default;
};
std::string ToString(const StreamKey& key);

// Reading end. One reader thread.
class ChunkReader {
 public:
  virtual ~ChunkReader() = default;
  // Waits for the next chunk. OUT_OF_RANGE: the stream is complete. NOT_FOUND or UNAVAILABLE: the
  // producer or its stream is gone. CANCELLED: the consumer was told to stop. DATA_LOSS: digest
  // mismatch.
  virtual absl::StatusOr<Chunk> Next() = 0;
};

// Writing end. One writer thread.
class ChunkWriter {
 public:
  virtual ~ChunkWriter() = default;
  // Fills in the digest. RESOURCE_EXHAUSTED: memory and spool are full.
  virtual absl::Status Append(Chunk chunk) = 0;
  virtual absl::Status Complete() = 0;
};

}  // namespace gradq
