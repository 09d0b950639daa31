#pragma once

// What a stream carries: chunks of named host tensors with a digest, and the two ends of a stream.
// No libtorch, so that services/ can include it beside .pb.h files; tensors.h turns HostTensor into
// at::Tensor and back without a copy.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

// Bytes that nobody changes any more. shared_ptr because a chunk is at once in the store, on the
// wire and inside a tensor; the owner may be memory of ours or a tensor's storage.
struct Buffer {
  std::shared_ptr<const std::byte> data;
  size_t size = 0;
  std::span<const std::byte> bytes() const { return {data.get(), size}; }
};

// 64-byte aligned, as tensors are, so that kernels take the same path for received and own data.
std::shared_ptr<std::byte> AllocateBytes(size_t size);

struct HostTensor {
  std::string name;
  std::string dtype;  // "float32", "float64", "int32"
  std::vector<int64_t> shape;
  Buffer data;
};

// Bytes that `dtype` and `shape` stand for. INVALID_ARGUMENT: unknown dtype, negative size, more
// than 2^46 bytes.
absl::StatusOr<int64_t> TensorBytes(std::string_view dtype, std::span<const int64_t> shape);

struct Chunk {
  std::vector<HostTensor> tensors;
  // SHA-256 (32 bytes) over the tensors' bytes, in order.
  std::string sha256;
  int64_t bytes() const;
};

// SHA-256 over the tensors' bytes, in order.
std::string ChunkDigest(const Chunk& chunk);

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

// The lanes of a RunStage task's streams.
inline constexpr std::string_view kOutputLane = "out";
std::string StatisticLane(std::string_view linear);

// Reading end. One reader thread.
class ChunkReader {
 public:
  virtual ~ChunkReader() = default;
  // Waits for the next chunk. OUT_OF_RANGE: the stream is complete. NOT_FOUND or UNAVAILABLE: the
  // producer or its stream is gone. CANCELLED: the consumer was told to stop. DATA_LOSS: digest
  // mismatch.
  virtual absl::StatusOr<Chunk> Next() = 0;
  // A waiting Next and every later one return CANCELLED. Any thread.
  virtual void Cancel() = 0;
};

// Writing end. One writer thread. Destroyed without Complete, the stream is abandoned: readers get
// NOT_FOUND.
class ChunkWriter {
 public:
  virtual ~ChunkWriter() = default;
  // Fills in the digest and returns it. RESOURCE_EXHAUSTED: memory and spool are full. NOT_FOUND:
  // the stream was freed meanwhile.
  virtual absl::StatusOr<std::string> Append(Chunk chunk) = 0;
  virtual absl::Status Complete() = 0;
};

}  // namespace gradq
