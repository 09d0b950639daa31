#include "tests/transformer/golden_file.h"

#include <ATen/ops/empty_ops.h>

#include <algorithm>
#include <cmath>
#include <span>

namespace gradq {
namespace {

at::Tensor Empty(const std::vector<int64_t>& shape, at::ScalarType dtype) {
  return at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), dtype, {}, at::kCPU,
                                             {}, {});
}

}  // namespace

GoldenFile::GoldenFile(const std::string& path) {
  auto file = OpenLocalFile(path);
  GRADQ_CHECK(file.ok());
  file_ = *std::move(file);
  auto header = ReadSafetensorsHeader(*file_, path);
  GRADQ_CHECK(header.ok());
  header_ = *std::move(header);
}

at::Tensor GoldenFile::Get(const std::string& name) const {
  const PlacedTensor* placed = header_.Find(name);
  GRADQ_CHECK(placed != nullptr);
  GRADQ_CHECK(placed->info.dtype == DType::kF32 || placed->info.dtype == DType::kI32);
  at::Tensor tensor =
      Empty(placed->info.shape, placed->info.dtype == DType::kF32 ? at::kFloat : at::kInt);
  const std::span<std::byte> bytes(static_cast<std::byte*>(tensor.mutable_data_ptr()),
                                   tensor.nbytes());
  GRADQ_CHECK(file_->Read(placed->offset, bytes).ok());
  return tensor;
}

bool BitEqual(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor left = a.contiguous(), right = b.contiguous();
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

double ScaledDistance(const at::Tensor& actual, const at::Tensor& expected) {
  GRADQ_CHECK(actual.numel() == expected.numel());
  const at::Tensor a = actual.to(at::kDouble).contiguous(),
                   b = expected.to(at::kDouble).contiguous();
  double distance = 0, scale = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double difference =
        std::abs(a.const_data_ptr<double>()[i] - b.const_data_ptr<double>()[i]);
    if (std::isnan(difference)) return difference;
    distance = std::max(distance, difference);
    scale = std::max(scale, std::abs(b.const_data_ptr<double>()[i]));
  }
  return distance / scale;
}

at::Tensor Pseudorandom(std::vector<int64_t> shape, uint32_t seed) {
  at::Tensor tensor = Empty(shape, at::kFloat);
  float* data = tensor.mutable_data_ptr<float>();
  uint32_t state = seed;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return tensor;
}

at::Tensor TokenTensor(const std::vector<int32_t>& ids, int64_t length) {
  at::Tensor tensor = Empty({static_cast<int64_t>(ids.size()) / length, length}, at::kInt);
  std::memcpy(tensor.mutable_data_ptr<int32_t>(), ids.data(), tensor.nbytes());
  return tensor;
}

}  // namespace gradq
