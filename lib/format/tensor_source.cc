#include "lib/format/tensor_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  int64_t size;
};
constexpr DTypeRow kDTypes[] = {
    {DType::kF64, "F64", 8},   {DType::kF32, "F32", 4},   {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2}, {DType::kI64, "I64", 8},   {DType::kI32, "I32", 4},
    {DType::kI16, "I16", 2},   {DType::kI8, "I8", 1},     {DType::kU8, "U8", 1},
    {DType::kU16, "U16", 2},   {DType::kBool, "BOOL", 1},
};

const DTypeRow& RowOf(DType dtype) {
  const DTypeRow& row = kDTypes[static_cast<int>(dtype)];
  GRADQ_CHECK(row.dtype == dtype);
  return row;
}

// Bytes converted at a time: the raw copy of a large tensor is never held beside its fp32 values.
constexpr int64_t kSliceBytes = int64_t{4} << 20;

float ValueAt(DType dtype, const std::byte* bytes, int64_t i) {
  uint16_t half = 0;
  float value = 0;
  switch (dtype) {
    case DType::kF16:
      std::memcpy(&half, bytes + 2 * i, 2);
      return Float16Value(half);
    case DType::kBF16:
      std::memcpy(&half, bytes + 2 * i, 2);
      return BFloat16Value(half);
    default:
      std::memcpy(&value, bytes + 4 * i, 4);
      return value;
  }
}

}  // namespace

int64_t DTypeSize(DType dtype) { return RowOf(dtype).size; }
std::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }

absl::StatusOr<DType> ParseDType(std::string_view name) {
  std::string known;
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
    known += StrCat(known.empty() ? "" : ", ", row.name);
  }
  return absl::InvalidArgumentError(
      StrCat("unknown dtype: ", name.substr(0, 32), "; known: ", known));
}

int64_t TensorInfo::elements() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

absl::Status TensorSource::VisitFloat32(
    std::string_view name,
    absl::FunctionRef<void(int64_t first, std::span<const float> values)> visit) const {
  GRADQ_ASSIGN_OR_RETURN(const TensorInfo info, Find(name));
  if (info.dtype != DType::kF32 && info.dtype != DType::kF16 && info.dtype != DType::kBF16) {
    return absl::FailedPreconditionError(
        StrCat("tensor is not of a floating-point type that can be read (F32, F16, BF16): ", name,
               ", ", DTypeName(info.dtype)));
  }
  const int64_t size = DTypeSize(info.dtype), elements = info.bytes / size;
  const int64_t slice = std::min(elements, kSliceBytes / size);
  std::vector<std::byte> bytes(static_cast<size_t>(slice * size));
  std::vector<float> values(static_cast<size_t>(slice));
  for (int64_t first = 0; first < elements; first += slice) {
    const int64_t count = std::min(elements - first, slice);
    GRADQ_RETURN_IF_ERROR(
        ReadRange(name, first * size, std::span(bytes).first(static_cast<size_t>(count * size))));
    for (int64_t i = 0; i < count; ++i) {
      const float value = ValueAt(info.dtype, bytes.data(), i);
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(
            StrCat("weight is not finite: ", name, ", element ", first + i, " is ", value));
      }
      values[static_cast<size_t>(i)] = value;
    }
    visit(first, std::span(values).first(static_cast<size_t>(count)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> TensorSource::ReadFloat32(std::string_view name) const {
  GRADQ_ASSIGN_OR_RETURN(const TensorInfo info, Find(name));
  std::vector<float> all(static_cast<size_t>(info.bytes / DTypeSize(info.dtype)));
  GRADQ_RETURN_IF_ERROR(VisitFloat32(name, [&](int64_t first, std::span<const float> values) {
    std::copy(values.begin(), values.end(), all.begin() + first);
  }));
  return all;
}

}  // namespace gradq
