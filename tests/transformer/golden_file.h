#pragma once

// Golden tensors of a safetensors file, and comparisons of tensors, for tests. A missing file or
// tensor ends the test process: goldens are part of the source.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/format/safetensors.h"

namespace gradq {

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path);

  bool Has(const std::string& name) const { return header_.Find(name) != nullptr; }
  // F32 or I32, on the CPU.
  at::Tensor Get(const std::string& name) const;

 private:
  std::unique_ptr<RandomAccessFile> file_;
  SafetensorsHeader header_;
};

// Same dtype, shape and bytes.
bool BitEqual(const at::Tensor& a, const at::Tensor& b);
// max |a - b| / max |b|: the distance relative to the scale of the expected tensor.
double ScaledDistance(const at::Tensor& actual, const at::Tensor& expected);
// Values in [-1, 1) of a linear congruential generator.
at::Tensor Pseudorandom(std::vector<int64_t> shape, uint32_t seed);

// Token ids [sequences × length] as int32 [sequences, length].
at::Tensor TokenTensor(const std::vector<int32_t>& ids, int64_t length);

}  // namespace gradq
