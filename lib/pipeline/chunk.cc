#include "lib/pipeline/chunk.h"

#include <cstdlib>
#include <new>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr size_t kAlignment = 64;
constexpr int64_t kMaxTensorBytes = int64_t{1} << 46;

}  // namespace

std::shared_ptr<std::byte> AllocateBytes(size_t size) {
  const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return {static_cast<std::byte*>(memory), [](std::byte* bytes) { std::free(bytes); }};
}

absl::StatusOr<int64_t> TensorBytes(std::string_view dtype, std::span<const int64_t> shape) {
  int64_t bytes = 0;
  if (dtype == "float32" || dtype == "int32") {
    bytes = 4;
  } else if (dtype == "float64") {
    bytes = 8;
  } else {
    return absl::InvalidArgumentError(StrCat("dtype not known in a stream: ", dtype));
  }
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > kMaxTensorBytes / size)) {
      return absl::InvalidArgumentError(StrCat("tensor size out of range: ", size));
    }
    bytes *= size;
  }
  return bytes;
}

int64_t Chunk::bytes() const {
  int64_t total = 0;
  for (const HostTensor& tensor : tensors) total += static_cast<int64_t>(tensor.data.size);
  return total;
}

std::string ChunkDigest(const Chunk& chunk) {
  Sha256 sha;
  for (const HostTensor& tensor : chunk.tensors) sha.Update(tensor.data.bytes());
  return sha.FinishBytes();
}

std::string ToString(const StreamKey& key) {
  return StrCat(key.job, "/", key.round, "/", key.task, "@", key.attempt, "/", key.lane);
}

std::string StatisticLane(std::string_view linear) { return StrCat("stat/", linear); }

}  // namespace gradq
