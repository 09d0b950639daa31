#pragma once

// The safetensors file format, read strictly and written deterministically. A file is an 8-byte
// little-end header length, a JSON header, and the tensors' bytes. Files may be remote: a header
// takes one or two reads. Free functions, thread-safe.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/files.h"
#include "lib/format/tensor_source.h"

namespace gradq {

inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // as the reference implementation

struct PlacedTensor {
  TensorInfo info;
  int64_t offset = 0;  // of its first byte, from the start of the file
};

struct SafetensorsHeader {
  std::vector<PlacedTensor> tensors;  // sorted by name
  std::map<std::string, std::string> metadata;
  std::string text;  // the header as it stands in the file, without the length

  // nullptr when absent.
  const PlacedTensor* Find(std::string_view name) const;
};

// `file` names the file in messages. INVALID_ARGUMENT: length above kMaxSafetensorsHeader or the
// file, not JSON, a name twice, an unknown dtype, a shape that does not fit its bytes, tensors that
// overlap, leave holes or do not end with the file.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const RandomAccessFile& file,
                                                        std::string_view name);
// The same for a whole file in memory.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::string_view bytes, std::string_view name);

// Length and header of a file that holds `tensors` in this order without holes, padded with spaces
// to a multiple of 8.
std::string SafetensorsPrefix(std::span<const TensorInfo> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace gradq
