#include "lib/format/quantized_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
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
// With outliers the second: a reader of the first would drop them.
constexpr std::string_view kShardVersions[] = {"1", "2"};

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

// Calls use(row, column, entry) for every outlier in storage order.
template <typename Use>
void ForEachOutlier(const QuantizedLinear& linear, const Use& use) {
  const SparseOutliers& outliers = linear.outliers;
  if (outliers.empty()) return;
  const int64_t chunks = OutlierChunks(linear.in_features);
  for (int64_t slot = 0; slot < linear.out_features * chunks; ++slot) {
    for (int64_t i = outliers.row_ptr[slot]; i < outliers.row_ptr[slot + 1]; ++i)
      use(slot / chunks, slot % chunks * kOutlierChunk + outliers.col[i], i);
  }
}

absl::Status ValidateOutliers(const QuantizedLinear& linear) {
  const SparseOutliers& outliers = linear.outliers;
  const size_t count = outliers.col.size();
  if (outliers.value.size() != count) {
    return Bad(linear, StrCat("outlier columns and values differ in number: ", count, ", ",
                              outliers.value.size()));
  }
  if (count == 0) {
    return outliers.row_ptr.empty() ? absl::OkStatus()
                                    : Bad(linear, "row pointers without outliers");
  }
  const int64_t chunks = OutlierChunks(linear.in_features);
  const size_t slots = static_cast<size_t>(linear.out_features * chunks);
  const std::vector<int32_t>& ptr = outliers.row_ptr;
  if (ptr.size() != slots + 1) {
    return Bad(linear, StrCat("outlier row pointers have the wrong size: ", ptr.size(),
                              ", expected ", slots + 1));
  }
  if (ptr.front() != 0 || static_cast<size_t>(ptr.back()) != count)
    return Bad(linear, StrCat("outlier row pointers don't go from 0 to ", count, ": ", ptr.front(),
                              ", ", ptr.back()));
  for (size_t slot = 0; slot < slots; ++slot) {
    if (ptr[slot + 1] < ptr[slot])
      return Bad(linear, StrCat("outlier row pointers fall: row ", slot / chunks));
  }
  for (size_t slot = 0; slot < slots; ++slot) {
    const int64_t first = static_cast<int64_t>(slot) % chunks * kOutlierChunk;
    for (int64_t i = ptr[slot]; i < ptr[slot + 1]; ++i) {
      if (first + outliers.col[i] >= linear.in_features)
        return Bad(linear, StrCat("outlier column out of range: row ", slot / chunks, ", column ",
                                  first + outliers.col[i]));
      if (i > ptr[slot] && outliers.col[i] <= outliers.col[i - 1])
        return Bad(linear, StrCat("outlier columns don't ascend: row ", slot / chunks));
      if (!IsFiniteHalf(outliers.value[i]))
        return Bad(linear, StrCat("outlier is not finite: row ", slot / chunks, ", column ",
                                  first + outliers.col[i]));
    }
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

double QuantizedLinear::outlier_fraction() const {
  return static_cast<double>(outliers.col.size()) / static_cast<double>(weights());
}

double QuantizedLinear::average_bits() const {
  const int64_t groups = static_cast<int64_t>(zero_point.size()) / out_features;
  const double zero_bits = 32.0 * static_cast<double>(PackedWords(out_features, bits) * groups);
  const double total = 32.0 * static_cast<double>(packed.size()) +
                       16.0 * static_cast<double>(lut.size() + scale.size()) + zero_bits +
                       16.0 * static_cast<double>(outliers.col.size() + outliers.value.size()) +
                       32.0 * static_cast<double>(outliers.row_ptr.size());
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
  GRADQ_RETURN_IF_ERROR(ValidateOutliers(linear));
  return ValidateRecord(linear);
}

std::vector<float> Dequantize(const QuantizedLinear& linear) {
  std::vector<float> values = DequantizeDense(linear);
  ForEachOutlier(linear, [&](int64_t row, int64_t column, int64_t i) {
    values[row * linear.in_features + column] += Float16Value(linear.outliers.value[i]);
  });
  return values;
}

absl::Status SetOutliers(std::span<const float> weights, std::span<const uint8_t> apart,
                         QuantizedLinear* linear) {
  GRADQ_CHECK(static_cast<int64_t>(weights.size()) == linear->weights() &&
              apart.size() == weights.size());
  linear->outliers = {};
  const std::vector<float> dense = DequantizeDense(*linear);
  SparseOutliers outliers;
  outliers.row_ptr.push_back(0);
  const int64_t in = linear->in_features;
  for (int64_t row = 0; row < linear->out_features; ++row) {
    for (int64_t first = 0; first < in; first += kOutlierChunk) {
      const int64_t end = std::min(first + kOutlierChunk, in);
      for (int64_t column = first; column < end; ++column) {
        const int64_t at = row * in + column;
        if (apart[at] == 0) continue;
        const uint16_t value = Float16Bits(weights[at] - dense[at]);
        if (!IsFiniteHalf(value)) {
          return Bad(*linear, StrCat("fp16 cannot hold an outlier's difference: row ", row,
                                     ", column ", column, ", ", weights[at] - dense[at]));
        }
        outliers.col.push_back(static_cast<uint16_t>(column - first));
        outliers.value.push_back(value);
      }
      if (outliers.col.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
        return Bad(*linear, StrCat("too many outliers: ", outliers.col.size()));
      outliers.row_ptr.push_back(static_cast<int32_t>(outliers.col.size()));
    }
  }
  if (!outliers.empty()) linear->outliers = std::move(outliers);
  return absl::OkStatus();
}

std::vector<float> DequantizeDense(const QuantizedLinear& linear) {
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
  return SafetensorsPrefix(
             LinearTensorInfos(linear),
             {{kShardKey, record},
              {kShardVersionKey, std::string(kShardVersions[linear.outliers.empty() ? 0 : 1])}}) +
         LinearTensorBytes(linear);
}

absl::StatusOr<QuantizedLinear> ParseShard(std::string_view bytes) {
  GRADQ_ASSIGN_OR_RETURN(const SafetensorsHeader header, ParseSafetensors(bytes, "shard"));
  const auto version = header.metadata.find(kShardVersionKey),
             record = header.metadata.find(kShardKey);
  if (version == header.metadata.end() || record == header.metadata.end())
    return absl::InvalidArgumentError("shard: not a gradq shard: metadata missing");
  if (std::find(std::begin(kShardVersions), std::end(kShardVersions), version->second) ==
      std::end(kShardVersions)) {
    return absl::UnimplementedError(
        StrCat("shard: version not known: ", version->second.substr(0, 32),
               "; known: ", kShardVersions[0], ", ", kShardVersions[1]));
  }
  GRADQ_ASSIGN_OR_RETURN(const json value, ParseJson(record->second, "shard record"));
  GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear, ParseLinearRecord(value, "shard record"));
  const auto find = [&](const std::string& name) -> absl::StatusOr<TensorInfo> {
    const PlacedTensor* tensor = header.Find(name);
    if (tensor == nullptr) return absl::NotFoundError(StrCat("shard: tensor missing: ", name));
    return tensor->info;
  };
  const auto read = [&](const std::string& name, std::span<std::byte> out) {
    std::memcpy(out.data(), bytes.data() + header.Find(name)->offset, out.size());
    return absl::OkStatus();
  };
  GRADQ_RETURN_IF_ERROR(ReadLinearTensors(find, read, &linear));
  if (version->second != kShardVersions[linear.outliers.empty() ? 0 : 1]) {
    return absl::InvalidArgumentError(StrCat(
        "shard: version contradicts its outliers: ", linear.name, ", version ", version->second));
  }
  if (header.tensors.size() != LinearTensorInfos(linear).size()) {
    return absl::InvalidArgumentError(
        StrCat("shard: more tensors than the linear has: ", linear.name));
  }
  return linear;
}

}  // namespace gradq
