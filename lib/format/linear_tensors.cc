#include "lib/format/linear_tensors.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFeatures = int64_t{1} << 20;

template <typename T>
void AppendBytes(const std::vector<T>& values, std::string* out) {
  out->append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

int64_t GroupsPerRow(const QuantizedLinear& linear) {
  return (linear.in_features + linear.group_size - 1) / linear.group_size;
}

// Zero points [out, groups] packed along the rows: element `row` of column `group` at bit row *
// bits of that column.
std::vector<uint32_t> PackZeroPoints(const QuantizedLinear& linear) {
  const int64_t groups = GroupsPerRow(linear),
                words = PackedWords(linear.out_features, linear.bits);
  std::vector<uint32_t> packed(static_cast<size_t>(words * groups));
  std::vector<uint8_t> column(static_cast<size_t>(linear.out_features));
  std::vector<uint32_t> column_words(static_cast<size_t>(words));
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t row = 0; row < linear.out_features; ++row)
      column[row] = linear.zero_point[row * groups + group];
    std::fill(column_words.begin(), column_words.end(), 0);
    PackRow(column, linear.bits, column_words);
    for (int64_t word = 0; word < words; ++word) packed[word * groups + group] = column_words[word];
  }
  return packed;
}

// False when unused bits are not 0.
bool UnpackZeroPoints(const std::vector<uint32_t>& packed, QuantizedLinear* linear) {
  const int64_t groups = GroupsPerRow(*linear),
                words = PackedWords(linear->out_features, linear->bits);
  linear->zero_point.resize(static_cast<size_t>(linear->out_features * groups));
  std::vector<uint8_t> column(static_cast<size_t>(linear->out_features));
  std::vector<uint32_t> column_words(static_cast<size_t>(words));
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t word = 0; word < words; ++word) column_words[word] = packed[word * groups + group];
    UnpackRow(column_words, linear->bits, column);
    for (int64_t row = 0; row < linear->out_features; ++row)
      linear->zero_point[row * groups + group] = column[row];
  }
  return PackZeroPoints(*linear) == packed;
}

json Optional(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }

// Typed access to the members of a record.
class RecordReader {
 public:
  RecordReader(const json& record, std::string_view where) : record_(record), where_(where) {}

  absl::Status Bad(std::string_view fact) const {
    return absl::InvalidArgumentError(StrCat(where_, ": ", fact));
  }

  absl::StatusOr<std::string> Word(const char* key) const {
    if (!record_.contains(key) || !record_[key].is_string())
      return Bad(StrCat("member missing or not a string: ", key));
    return record_[key].get<std::string>();
  }
  absl::StatusOr<int64_t> Whole(const char* key, int64_t min, int64_t max) const {
    if (!record_.contains(key) || !record_[key].is_number_unsigned() ||
        record_[key].get<uint64_t>() < static_cast<uint64_t>(min) ||
        record_[key].get<uint64_t>() > static_cast<uint64_t>(max)) {
      return Bad(StrCat("member missing or not a whole number in ", min, "..", max, ": ", key));
    }
    return record_[key].get<int64_t>();
  }
  absl::StatusOr<std::optional<double>> Number(const char* key) const {
    if (!record_.contains(key) || !(record_[key].is_number() || record_[key].is_null())) {
      return Bad(StrCat("member missing or not a number: ", key));
    }
    return record_[key].is_null() ? std::nullopt : std::optional(record_[key].get<double>());
  }

 private:
  const json& record_;
  std::string_view where_;
};

}  // namespace

std::vector<TensorInfo> LinearTensorInfos(const QuantizedLinear& linear) {
  return LinearTensorInfos(linear, static_cast<int64_t>(linear.outliers.col.size()));
}

std::vector<TensorInfo> LinearTensorInfos(const QuantizedLinear& linear, int64_t outliers) {
  const int64_t out = linear.out_features, in = linear.in_features;
  std::vector<TensorInfo> infos;
  const auto add = [&](const char* suffix, DType dtype, std::vector<int64_t> shape) {
    TensorInfo info{
        .name = StrCat(linear.name, ".", suffix), .dtype = dtype, .shape = std::move(shape)};
    info.bytes = info.elements() * DTypeSize(dtype);
    infos.push_back(std::move(info));
  };
  add("weight_shape", DType::kI64, {2});
  add("weight_packed", DType::kI32, {out, PackedWords(in, linear.bits)});
  if (linear.encoding == Encoding::kLut) {
    add("weight_lut", DType::kF16, {out, int64_t{1} << linear.bits});
  } else {
    const int64_t groups = GroupsPerRow(linear);
    add("weight_zero_point", DType::kI32, {PackedWords(out, linear.bits), groups});
    add("weight_scale", DType::kF16, {out, groups});
  }
  if (outliers > 0) {
    add("outlier_row_ptr", DType::kI32, {out * OutlierChunks(in) + 1});
    add("outlier_col", DType::kU16, {outliers});
    add("outlier_value", DType::kF16, {outliers});
  }
  return infos;
}

std::string LinearTensorBytes(const QuantizedLinear& linear) {
  std::string bytes;
  AppendBytes(std::vector<int64_t>{linear.out_features, linear.in_features}, &bytes);
  AppendBytes(linear.packed, &bytes);
  if (linear.encoding == Encoding::kLut) {
    AppendBytes(linear.lut, &bytes);
  } else {
    AppendBytes(PackZeroPoints(linear), &bytes);
    AppendBytes(linear.scale, &bytes);
  }
  if (!linear.outliers.empty()) {
    AppendBytes(linear.outliers.row_ptr, &bytes);
    AppendBytes(linear.outliers.col, &bytes);
    AppendBytes(linear.outliers.value, &bytes);
  }
  return bytes;
}

absl::StatusOr<int64_t> StoredOutliers(
    const std::string& linear,
    const std::function<absl::StatusOr<TensorInfo>(const std::string& name)>& find) {
  const absl::StatusOr<TensorInfo> row_ptr = find(linear + ".outlier_row_ptr");
  if (absl::IsNotFound(row_ptr.status())) return 0;
  if (!row_ptr.ok()) return row_ptr.status();
  const absl::StatusOr<TensorInfo> col = find(linear + ".outlier_col");
  if (!col.ok() || col->shape.size() != 1 || col->shape[0] < 1) {
    return absl::InvalidArgumentError(
        StrCat("outlier_col is not there or no list of at least one column: ", linear));
  }
  return col->shape[0];
}

absl::Status ReadLinearTensors(
    const std::function<absl::StatusOr<TensorInfo>(const std::string& name)>& find,
    const std::function<absl::Status(const std::string& name, std::span<std::byte> out)>& read,
    QuantizedLinear* linear) {
  GRADQ_ASSIGN_OR_RETURN(const int64_t outliers, StoredOutliers(linear->name, find));
  const std::vector<TensorInfo> infos = LinearTensorInfos(*linear, outliers);
  for (const TensorInfo& expected : infos) {
    const absl::StatusOr<TensorInfo> info = find(expected.name);
    if (absl::IsNotFound(info.status()))
      return absl::InvalidArgumentError(std::string(info.status().message()));
    if (!info.ok()) return info.status();
    if (info->dtype != expected.dtype || info->shape != expected.shape) {
      return absl::InvalidArgumentError(StrCat(
          "tensor has another type or shape than its linear's sizes ask for: ", expected.name));
    }
  }
  const auto read_into = [&](const TensorInfo& info, auto& values) {
    values.resize(static_cast<size_t>(info.elements()));
    return read(info.name, std::as_writable_bytes(std::span(values)));
  };
  std::vector<int64_t> shape;
  GRADQ_RETURN_IF_ERROR(read_into(infos[0], shape));
  if (shape != std::vector<int64_t>{linear->out_features, linear->in_features}) {
    return absl::InvalidArgumentError(StrCat("weight_shape contradicts the linear's sizes: ",
                                             linear->name, ", ", shape[0], " × ", shape[1]));
  }
  GRADQ_RETURN_IF_ERROR(read_into(infos[1], linear->packed));
  if (linear->encoding == Encoding::kLut) {
    GRADQ_RETURN_IF_ERROR(read_into(infos[2], linear->lut));
  } else {
    std::vector<uint32_t> zero_points;
    GRADQ_RETURN_IF_ERROR(read_into(infos[2], zero_points));
    if (!UnpackZeroPoints(zero_points, linear)) {
      return absl::InvalidArgumentError(
          StrCat("unused bits of weight_zero_point are not 0: ", linear->name));
    }
    GRADQ_RETURN_IF_ERROR(read_into(infos[3], linear->scale));
  }
  if (outliers > 0) {
    const size_t first = infos.size() - 3;
    GRADQ_RETURN_IF_ERROR(read_into(infos[first], linear->outliers.row_ptr));
    GRADQ_RETURN_IF_ERROR(read_into(infos[first + 1], linear->outliers.col));
    GRADQ_RETURN_IF_ERROR(read_into(infos[first + 2], linear->outliers.value));
  }
  return Validate(*linear);
}

json LinearRecordJson(const QuantizedLinear& linear) {
  json record = {{"name", linear.name},
                 {"method", linear.record.method},
                 {"encoding", EncodingName(linear.encoding)},
                 {"bits", linear.bits},
                 {"shape", {linear.out_features, linear.in_features}},
                 {"objective_initial", Optional(linear.record.objective_initial)},
                 {"objective_final", Optional(linear.record.objective_final)},
                 {"predicted_loss_increase", Optional(linear.record.predicted_loss_increase)},
                 {"damping", linear.record.damping},
                 {"numbers", linear.record.numbers}};
  if (linear.encoding == Encoding::kAffine) record["group_size"] = linear.group_size;
  return record;
}

absl::StatusOr<QuantizedLinear> ParseLinearRecord(const json& record, std::string_view where) {
  const RecordReader reader(record, where);
  if (!record.is_object()) return reader.Bad("record is not an object");
  QuantizedLinear linear;
  GRADQ_ASSIGN_OR_RETURN(linear.name, reader.Word("name"));
  GRADQ_ASSIGN_OR_RETURN(linear.record.method, reader.Word("method"));
  GRADQ_ASSIGN_OR_RETURN(const std::string encoding, reader.Word("encoding"));
  const absl::StatusOr<Encoding> known = ParseEncoding(encoding);
  if (!known.ok()) return reader.Bad(std::string(known.status().message()));
  linear.encoding = *known;
  GRADQ_ASSIGN_OR_RETURN(const int64_t bits, reader.Whole("bits", 1, 8));
  linear.bits = static_cast<int>(bits);
  if (linear.encoding == Encoding::kAffine) {
    GRADQ_ASSIGN_OR_RETURN(linear.group_size, reader.Whole("group_size", 1, kMaxFeatures));
  }
  const auto is_size = [](const json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() >= 1 &&
           value.get<uint64_t>() <= static_cast<uint64_t>(kMaxFeatures);
  };
  if (!record.contains("shape") || !record["shape"].is_array() || record["shape"].size() != 2 ||
      !is_size(record["shape"][0]) || !is_size(record["shape"][1])) {
    return reader.Bad(
        StrCat("member missing or not a pair of sizes in 1..", kMaxFeatures, ": shape"));
  }
  linear.out_features = record["shape"][0].get<int64_t>();
  linear.in_features = record["shape"][1].get<int64_t>();
  GRADQ_ASSIGN_OR_RETURN(linear.record.objective_initial, reader.Number("objective_initial"));
  GRADQ_ASSIGN_OR_RETURN(linear.record.objective_final, reader.Number("objective_final"));
  GRADQ_ASSIGN_OR_RETURN(linear.record.predicted_loss_increase,
                         reader.Number("predicted_loss_increase"));
  if (!record.contains("damping") || !record["damping"].is_array())
    return reader.Bad("member missing or not a list: damping");
  for (const json& value : record["damping"]) {
    if (!value.is_number()) return reader.Bad("damping is not a list of numbers");
    linear.record.damping.push_back(value.get<double>());
  }
  if (!record.contains("numbers") || !record["numbers"].is_object())
    return reader.Bad("member missing or not an object: numbers");
  for (const auto& [key, value] : record["numbers"].items()) {
    if (!value.is_number()) return reader.Bad(StrCat("not a number: numbers.", key));
    linear.record.numbers[key] = value.get<double>();
  }
  return linear;
}

}  // namespace gradq
