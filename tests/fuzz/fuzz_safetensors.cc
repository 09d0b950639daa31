// A safetensors file in memory, by both readers; a header that was accepted must describe bytes
// inside the file.

#include "lib/base/status_macros.h"
#include "lib/format/safetensors.h"
#include "tests/fuzz/memory_folder.h"
#include "tests/fuzz/seeds.h"
#include "tests/fuzz/small_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const auto parsed = gradq::ParseSafetensors(bytes, "input");
  const auto read = gradq::ReadSafetensorsHeader(gradq::MemoryFile(bytes), "input");
  GRADQ_CHECK(parsed.ok() == read.ok());
  if (!parsed.ok()) return 0;
  int64_t sum = 0;
  for (const gradq::PlacedTensor& tensor : parsed->tensors) {
    GRADQ_CHECK(tensor.offset >= 0 && tensor.info.bytes >= 0);
    GRADQ_CHECK(tensor.offset + tensor.info.bytes <= static_cast<int64_t>(size));
    GRADQ_CHECK(tensor.info.elements() * gradq::DTypeSize(tensor.info.dtype) == tensor.info.bytes);
    sum += tensor.info.bytes;
  }
  GRADQ_CHECK(sum + 8 + static_cast<int64_t>(parsed->text.size()) == static_cast<int64_t>(size));
  return 0;
}

std::vector<std::string> gradq::FuzzSeeds() {
  return {SmallWeights(0, 3), SmallWeights(2, 100), SmallWeights(0, 0)};
}
