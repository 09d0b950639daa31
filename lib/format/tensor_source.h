#pragma once

// Named tensors that can be read one by one: a checkpoint folder, a shard, or a folder behind an
// RPC. Thread-safe.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

enum class DType { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kU16, kBool };
int64_t DTypeSize(DType dtype);
// Names of the safetensors format: "F32".
std::string_view DTypeName(DType dtype);
absl::StatusOr<DType> ParseDType(std::string_view name);

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t bytes = 0;

  int64_t elements() const;
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Sorted by name.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // NOT_FOUND naming the tensor and the folder.
  virtual absl::StatusOr<TensorInfo> Find(std::string_view name) const = 0;
  // Raw little-end bytes from `offset` of the tensor. OUT_OF_RANGE when they reach past its end.
  virtual absl::Status ReadRange(std::string_view name, int64_t offset,
                                 std::span<std::byte> out) const = 0;
  // The whole tensor, `out` exactly TensorInfo::bytes long.
  absl::Status Read(std::string_view name, std::span<std::byte> out) const {
    return ReadRange(name, 0, out);
  }

  // Calls `visit(first, values)` slice by slice in order with F32, F16 or BF16 converted to fp32.
  // Errors as ReadFloat32.
  absl::Status VisitFloat32(
      std::string_view name,
      absl::FunctionRef<void(int64_t first, std::span<const float> values)> visit) const;

  // F32, F16 or BF16 converted to fp32 in [elements] order. FAILED_PRECONDITION for another dtype;
  // INVALID_ARGUMENT naming the tensor when a value is NaN or Inf.
  absl::StatusOr<std::vector<float>> ReadFloat32(std::string_view name) const;
};

}  // namespace gradq
