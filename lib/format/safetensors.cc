#include "lib/format/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/strict_json.h"

static_assert(std::endian::native == std::endian::little,
              "tensor bytes are used as they lie in the file");

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;
// First read of a file: holds the header of most files, so that one call is enough.
constexpr int64_t kFirstRead = int64_t{256} << 10;

absl::Status Bad(std::string_view file, std::string_view fact) {
  return absl::InvalidArgumentError(StrCat(file, ": ", fact));
}

absl::StatusOr<int64_t> HeaderLength(std::string_view start, int64_t file_size,
                                     std::string_view file) {
  if (static_cast<int64_t>(start.size()) < kLengthBytes) {
    return Bad(file, StrCat("too short for a safetensors file: ", file_size, " bytes"));
  }
  uint64_t length = 0;
  std::memcpy(&length, start.data(), sizeof(length));
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeader)) {
    return Bad(file, StrCat("safetensors header length above the limit: ", length, ", ",
                            kMaxSafetensorsHeader));
  }
  if (static_cast<int64_t>(length) > file_size - kLengthBytes) {
    return Bad(file, StrCat("safetensors header reaches past the end of the file: header ", length,
                            ", file ", file_size, " bytes"));
  }
  return static_cast<int64_t>(length);
}

// A number of a header: whole and in [0, 2^62].
std::optional<int64_t> Count(const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > (uint64_t{1} << 62))
    return std::nullopt;
  return static_cast<int64_t>(value.get<uint64_t>());
}

std::optional<int64_t> CheckedProduct(int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

absl::StatusOr<PlacedTensor> ReadEntry(const std::string& name, const json& entry,
                                       std::string_view file) {
  const auto bad = [&](std::string_view fact) {
    return Bad(file, StrCat("tensor ", name, ": ", fact));
  };
  if (!entry.is_object()) return bad("entry is not an object");
  if (!entry.contains("dtype") || !entry["dtype"].is_string()) return bad("dtype missing");
  if (!entry.contains("shape") || !entry["shape"].is_array()) return bad("shape missing");
  if (!entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
      entry["data_offsets"].size() != 2) {
    return bad("data_offsets missing or not a pair");
  }
  PlacedTensor tensor;
  tensor.info.name = name;
  const absl::StatusOr<DType> dtype = ParseDType(entry["dtype"].get_ref<const std::string&>());
  if (!dtype.ok()) return bad(std::string(dtype.status().message()));
  tensor.info.dtype = *dtype;

  std::optional<int64_t> bytes = DTypeSize(*dtype);
  for (const json& value : entry["shape"]) {
    const std::optional<int64_t> size = Count(value);
    if (!size) return bad(StrCat("shape is not a list of whole numbers: ", value.dump()));
    tensor.info.shape.push_back(*size);
    if (bytes) bytes = CheckedProduct(*bytes, *size);
  }
  const std::optional<int64_t> begin = Count(entry["data_offsets"][0]),
                               end = Count(entry["data_offsets"][1]);
  if (!begin || !end || *end < *begin)
    return bad(StrCat("data_offsets are not an ascending pair: ", entry["data_offsets"].dump()));
  if (!bytes || *bytes != *end - *begin) {
    return bad(StrCat("shape and data_offsets disagree: ", entry["shape"].dump(), " of ",
                      DTypeName(*dtype), ", ", *end - *begin, " bytes"));
  }
  tensor.info.bytes = *bytes;
  tensor.offset = *begin;
  return tensor;
}

// `data_bytes`: what follows the header. Turns offsets from the start of the data into offsets from
// the start of the file.
absl::Status CheckPlaces(std::vector<PlacedTensor>& tensors, int64_t header, int64_t data_bytes,
                         std::string_view file) {
  std::vector<PlacedTensor*> by_offset;
  for (PlacedTensor& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const PlacedTensor* a, const PlacedTensor* b) {
    return std::pair(a->offset, a->offset + a->info.bytes) <
           std::pair(b->offset, b->offset + b->info.bytes);
  });
  int64_t position = 0;
  for (const PlacedTensor* tensor : by_offset) {
    const int64_t end = tensor->offset + tensor->info.bytes;
    if (tensor->offset < position)
      return Bad(file, StrCat("tensor ", tensor->info.name, " overlaps the one before it at byte ",
                              tensor->offset));
    if (tensor->offset > position)
      return Bad(file, StrCat("hole before tensor ", tensor->info.name, ": bytes ", position, "..",
                              tensor->offset));
    if (end > data_bytes) {
      return Bad(file, StrCat("tensor ", tensor->info.name, " reaches past the end of the file: ",
                              end, " of ", data_bytes, " bytes of data"));
    }
    position = end;
  }
  if (position != data_bytes)
    return Bad(file, StrCat("bytes after the last tensor: ", data_bytes - position));
  for (PlacedTensor& tensor : tensors) tensor.offset += kLengthBytes + header;
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsHeader> ParseHeader(std::string text, int64_t file_size,
                                              std::string_view file) {
  // Equal names are refused by the parser: one object cannot hold a key twice.
  GRADQ_ASSIGN_OR_RETURN(const json root,
                         ParseJsonObject(text, StrCat(file, ": safetensors header")));
  SafetensorsHeader header;
  for (const auto& [name, entry] : root.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return Bad(file, "__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return Bad(file, StrCat("__metadata__ value is not a string: ", key));
        header.metadata.emplace(key, value.get<std::string>());
      }
      continue;
    }
    GRADQ_ASSIGN_OR_RETURN(PlacedTensor tensor, ReadEntry(name, entry, file));
    header.tensors.push_back(std::move(tensor));
  }
  const int64_t length = static_cast<int64_t>(text.size());
  GRADQ_RETURN_IF_ERROR(
      CheckPlaces(header.tensors, length, file_size - kLengthBytes - length, file));
  header.text = std::move(text);
  return header;
}

}  // namespace

const PlacedTensor* SafetensorsHeader::Find(std::string_view name) const {
  const auto it = std::lower_bound(tensors.begin(), tensors.end(), name,
                                   [](const PlacedTensor& tensor, std::string_view wanted) {
                                     return tensor.info.name < wanted;
                                   });
  return it != tensors.end() && it->info.name == name ? &*it : nullptr;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const RandomAccessFile& file,
                                                        std::string_view name) {
  std::string start(static_cast<size_t>(std::min(file.size(), kFirstRead)), '\0');
  GRADQ_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(start))));
  GRADQ_ASSIGN_OR_RETURN(const int64_t length, HeaderLength(start, file.size(), name));
  const size_t have = start.size(), want = static_cast<size_t>(kLengthBytes + length);
  start.resize(want);
  if (want > have) {
    GRADQ_RETURN_IF_ERROR(file.Read(static_cast<int64_t>(have),
                                    std::as_writable_bytes(std::span(start).subspan(have))));
  }
  return ParseHeader(start.substr(kLengthBytes), file.size(), name);
}

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::string_view bytes, std::string_view name) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  GRADQ_ASSIGN_OR_RETURN(const int64_t length, HeaderLength(bytes, size, name));
  return ParseHeader(std::string(bytes.substr(kLengthBytes, static_cast<size_t>(length))), size,
                     name);
}

std::string SafetensorsPrefix(std::span<const TensorInfo> tensors,
                              const std::map<std::string, std::string>& metadata) {
  json root = json::object();
  if (!metadata.empty()) root["__metadata__"] = metadata;
  int64_t position = 0;
  for (const TensorInfo& tensor : tensors) {
    root[tensor.name] = {{"dtype", DTypeName(tensor.dtype)},
                         {"shape", tensor.shape},
                         {"data_offsets", {position, position + tensor.bytes}}};
    position += tensor.bytes;
  }
  std::string text = root.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string prefix(kLengthBytes, '\0');
  std::memcpy(prefix.data(), &length, sizeof(length));
  return prefix + text;
}

}  // namespace gradq
