// A shard as WriteShard receives it; one that is accepted must survive the way back unchanged.

#include "lib/base/status_macros.h"
#include "lib/format/quantized_linear.h"
#include "tests/format/random_linear.h"
#include "tests/fuzz/seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto linear = gradq::ParseShard({reinterpret_cast<const char*>(data), size});
  if (!linear.ok()) return 0;
  GRADQ_CHECK(gradq::Validate(*linear).ok());
  const std::vector<float> values = gradq::Dequantize(*linear);
  GRADQ_CHECK(static_cast<int64_t>(values.size()) == linear->weights());
  const std::string bytes = gradq::SerializeShard(*linear);
  const auto again = gradq::ParseShard(bytes);
  GRADQ_CHECK(again.ok());
  GRADQ_CHECK(gradq::SerializeShard(*again) == bytes);
  return 0;
}

std::vector<std::string> gradq::FuzzSeeds() {
  std::vector<std::string> seeds;
  for (const int bits : {1, 3, 4, 8}) {
    seeds.push_back(SerializeShard(RandomLinear("l", Encoding::kLut, bits, 3, 5, 0, 1)));
    seeds.push_back(SerializeShard(RandomLinear("l", Encoding::kAffine, bits, 9, 5, 2, 1)));
    QuantizedLinear sparse = RandomLinear("l", Encoding::kLut, bits, 4, 7, 0, 1);
    AddRandomOutliers(&sparse, 4, 1);
    seeds.push_back(SerializeShard(sparse));
  }
  return seeds;
}
