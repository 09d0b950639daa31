#include "lib/format/quantized_linear.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/strict_json.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/packing.h"
#include "lib/format/safetensors.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFeatures = int64_t{1} << 20;
// Members of a shard's __metadata__.
constexpr char kShardKey[] = "gradq_shard";
constexpr char kShardVersionKey[] = "gradq_shard_version";
constexpr char kShardVersion[] = "1";

absl::Status Bad(const QuantizedLinear& linear, std::string_view fact) {
  return absl::InvalidArgumentError(StrCat("quantized linear ", linear.name, ": ", fact));
}

bool IsFiniteHalf(uint16_t bits) { return (bits & 0x7c00u) != 0x7c00u; }

absl::Status ValidateLut(const QuantizedLinear& linear) {
  const int64_t entries = int64_t{1} << linear.bits;
  if (static_cast<int64_t>(linear.lut.size()) != linear.out_features * entries) {
    return Bad(linear, StrCat("table has the wrong size: ", linear.lut.size(), ", expected ",
                              linear.out_features * entries));
  }
  for (size_t i = 0; i < linear.lut.size(); ++i) {
    if (!IsFiniteHalf(linear.lut[i]))
      return Bad(linear,
                 StrCat("table entry is not finite: row ", i / entries, ", code ", i % entries));
    if (i % entries != 0 && Float16Value(linear.lut[i]) < Float16Value(linear.lut[i - 1])) {
      return Bad(linear,
                 StrCat("table is not ascending: row ", i / entries, ", code ", i % entries));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateAffine(const QuantizedLinear& linear) {
  if (linear.group_size < 1 || linear.group_size > kMaxFeatures)
    return Bad(linear, StrCat("group size out of range: ", linear.group_size));
  const int64_t groups = (linear.in_features + linear.group_size - 1) / linear.group_size;
  const size_t expected = static_cast<size_t>(linear.out_features * groups);
  if (linear.scale.size() != expected || linear.zero_point.size() != expected) {
    return Bad(linear, StrCat("scales or zero points have the wrong size: ", linear.scale.size(),
                              ", ", linear.zero_point.size(), ", expected ", expected));
  }
  for (size_t i = 0; i < expected; ++i) {
    if (!IsFiniteHalf(linear.scale[i]))
      return Bad(linear, StrCat("scale is not finite: row ", i / groups, ", group ", i % groups));
    if (linear.zero_point[i] >= (1 << linear.bits))
      return Bad(linear, StrCat("zero point out of range: ", linear.zero_point[i]));
  }
  return absl::OkStatus();
}

absl::Status ValidateRecord(const QuantizedLinear& linear) {
  const SolveRecord& record = linear.record;
  const auto finite = [](const std::optional<double>& value) {
    return !value || std::isfinite(*value);
  };
  bool good = finite(record.objective_initial) && finite(record.objective_final) &&
              finite(record.predicted_loss_increase);
  for (const double value : record.damping) good = good && std::isfinite(value);
  for (const auto& [key, value] : record.numbers) good = good && std::isfinite(value);
  return good ? absl::OkStatus() : Bad(linear, "a number of the solve record is not finite");
}

}  // namespace

std::string_view EncodingName(Encoding encoding) {
  return encoding == Encoding::kLut ? "lut" : "affine";
}

absl::StatusOr<Encoding> ParseEncoding(std::string_view word) {
  if (word == "lut") return Encoding::kLut;
  if (word == "affine") return Encoding::kAffine;
  return absl::InvalidArgumentError(
      StrCat("unknown encoding: ", word.substr(0, 32), "; known: lut, affine"));
}

double QuantizedLinear::average_bits() const {
  const int64_t groups = static_cast<int64_t>(zero_point.size()) / out_features;
  const double zero_bits = 32.0 * static_cast<double>(PackedWords(out_features, bits) * groups);
  const double total = 32.0 * static_cast<double>(packed.size()) +
                       16.0 * static_cast<double>(lut.size() + scale.size()) + zero_bits;
  return total / static_cast<double>(weights());
}

absl::Status Validate(const QuantizedLinear& linear) {
  if (linear.bits < 1 || linear.bits > 8)
    return Bad(linear, StrCat("bits not in 1..8: ", linear.bits));
  if (linear.out_features < 1 || linear.in_features < 1 || linear.out_features > kMaxFeatures ||
      linear.in_features > kMaxFeatures) {
    return Bad(linear, StrCat("sizes not in 1..", kMaxFeatures, ": ", linear.out_features, " × ",
                              linear.in_features));
  }
  const int64_t words = PackedWords(linear.in_features, linear.bits);
  if (static_cast<int64_t>(linear.packed.size()) != linear.out_features * words) {
    return Bad(linear, StrCat("codes have the wrong size: ", linear.packed.size(),
                              " words, expected ", linear.out_features * words));
  }
  const int used = static_cast<int>((linear.in_features * linear.bits - 1) % 32 +
                                    1);  // bits of a row's last word
  for (int64_t row = 0; used < 32 && row < linear.out_features; ++row) {
    if (linear.packed[row * words + words - 1] >> used != 0)
      return Bad(linear, StrCat("unused bits of the codes are not 0: row ", row));
  }
  GRADQ_RETURN_IF_ERROR(linear.encoding == Encoding::kLut ? ValidateLut(linear)
                                                          : ValidateAffine(linear));
  return ValidateRecord(linear);
}

std::vector<float> Dequantize(const QuantizedLinear& linear) {
  const int64_t out = linear.out_features, in = linear.in_features,
                words = PackedWords(in, linear.bits);
  std::vector<float> values(static_cast<size_t>(out * in));
  std::vector<uint8_t> codes(static_cast<size_t>(in));
  float table[256];
  for (int64_t row = 0; row < out; ++row) {
    UnpackRow(std::span(linear.packed).subspan(row * words, words), linear.bits, codes);
    float* to = values.data() + row * in;
    if (linear.encoding == Encoding::kLut) {
      const int64_t entries = int64_t{1} << linear.bits;
      for (int64_t q = 0; q < entries; ++q) table[q] = Float16Value(linear.lut[row * entries + q]);
      for (int64_t j = 0; j < in; ++j) to[j] = table[codes[j]];
    } else {
      const int64_t groups = (in + linear.group_size - 1) / linear.group_size;
      for (int64_t j = 0; j < in; ++j) {
        const int64_t group = row * groups + j / linear.group_size;
        to[j] = static_cast<float>(static_cast<int>(codes[j]) -
                                   static_cast<int>(linear.zero_point[group])) *
                Float16Value(linear.scale[group]);
      }
    }
  }
  return values;
}

std::string SerializeShard(const QuantizedLinear& linear) {
  const std::string record = CanonicalJson(LinearRecordJson(linear));
  return SafetensorsPrefix(LinearTensorInfos(linear),
                           {{kShardKey, record}, {kShardVersionKey, kShardVersion}}) +
         LinearTensorBytes(linear);
}

absl::StatusOr<QuantizedLinear> ParseShard(std::string_view bytes) {
  GRADQ_ASSIGN_OR_RETURN(const SafetensorsHeader header, ParseSafetensors(bytes, "shard"));
  const auto version = header.metadata.find(kShardVersionKey),
             record = header.metadata.find(kShardKey);
  if (version == header.metadata.end() || record == header.metadata.end())
    return absl::InvalidArgumentError("shard: not a gradq shard: metadata missing");
  if (version->second != kShardVersion) {
    return absl::UnimplementedError(StrCat(
        "shard: version not known: ", version->second.substr(0, 32), "; known: ", kShardVersion));
  }
  GRADQ_ASSIGN_OR_RETURN(const json value, ParseJson(record->second, "shard record"));
  GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear, ParseLinearRecord(value, "shard record"));
  const auto find = [&](const std::string& name) -> absl::StatusOr<TensorInfo> {
    const PlacedTensor* tensor = header.Find(name);
    if (tensor == nullptr)
      return absl::InvalidArgumentError(StrCat("shard: tensor missing: ", name));
    return tensor->info;
  };
  const auto read = [&](const std::string& name, std::span<std::byte> out) {
    std::memcpy(out.data(), bytes.data() + header.Find(name)->offset, out.size());
    return absl::OkStatus();
  };
  GRADQ_RETURN_IF_ERROR(ReadLinearTensors(find, read, &linear));
  if (header.tensors.size() != LinearTensorInfos(linear).size()) {
    return absl::InvalidArgumentError(
        StrCat("shard: more tensors than the linear has: ", linear.name));
  }
  return linear;
}

}  // namespace gradq
