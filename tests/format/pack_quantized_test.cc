// Our affine tensors against those that compressed-tensors itself writes and reads
// (tests/golden/format/make_pack_quantized.py).

#include <cstring>

#include "gtest/gtest.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/safetensors.h"
#include "tests/format/temporary_folder.h"

namespace gradq {
namespace {

class PackQuantized : public ::testing::TestWithParam<int> {};

TEST_P(PackQuantized, SameBytesAndSameWeights) {
  const std::string path = std::string(GRADQ_GOLDEN) + "/format/pack_quantized_" +
                           std::to_string(GetParam()) + ".safetensors";
  const std::string bytes = *ReadFile(path);
  const auto header = ParseSafetensors(bytes, path);
  ASSERT_TRUE(header.ok()) << header.status();
  const auto bytes_of = [&](const std::string& name) {
    const PlacedTensor* tensor = header->Find(name);
    EXPECT_NE(tensor, nullptr) << name;
    return tensor == nullptr ? std::string() : bytes.substr(tensor->offset, tensor->info.bytes);
  };

  QuantizedLinear linear;
  linear.name = "l";
  linear.encoding = Encoding::kAffine;
  linear.bits = GetParam();
  linear.out_features = 24;
  linear.in_features = 96;
  linear.group_size = 32;
  const auto find = [&](const std::string& name) -> absl::StatusOr<TensorInfo> {
    const PlacedTensor* tensor = header->Find(name);
    if (tensor == nullptr) return absl::NotFoundError(name);
    return tensor->info;
  };
  const auto read = [&](const std::string& name, std::span<std::byte> out) {
    std::memcpy(out.data(), bytes_of(name).data(), out.size());
    return absl::OkStatus();
  };
  const absl::Status status = ReadLinearTensors(find, read, &linear);
  ASSERT_TRUE(status.ok()) << status;

  const std::vector<float> weights = Dequantize(linear);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(weights.data()), weights.size() * 4),
            bytes_of("expected"));
  std::string stored;
  for (const TensorInfo& info : LinearTensorInfos(linear)) stored += bytes_of(info.name);
  EXPECT_EQ(LinearTensorBytes(linear), stored);
}

INSTANTIATE_TEST_SUITE_P(Bits, PackQuantized, ::testing::Values(4, 8));

}  // namespace
}  // namespace gradq
