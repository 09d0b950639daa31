#include <cstdint>
#include <string>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/exports/writers.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

absl::Status AppendWeights(const Artifact& artifact, const std::string& name, AppendBytes append) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, artifact.ReadLinear(name));
  const std::vector<float> values = Dequantize(linear);
  std::string bytes;
  bytes.reserve(values.size() * sizeof(uint16_t));
  for (const float value : values) {
    const uint16_t bits = BFloat16Bits(value);
    bytes.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }
  return append(bytes);
}

}  // namespace

absl::Status ExportDenseBf16(const ExportInputs& inputs, FolderWriter& folder) {
  return WriteExportedModel(
      inputs, "gradq_fake_quantized",
      "weights of the linears are quantized values stored as bf16; nothing is packed",
      [&](const ExportedLinear& linear) -> WeightItem {
        const int64_t bytes = linear.out_features * linear.in_features * DTypeSize(DType::kBF16);
        return {.infos = {{.name = linear.name + ".weight",
                           .dtype = DType::kBF16,
                           .shape = {linear.out_features, linear.in_features},
                           .bytes = bytes}},
                .write = [&artifact = inputs.artifact, name = linear.name](AppendBytes append) {
                  return AppendWeights(artifact, name, append);
                }};
      },
      folder);
}

}  // namespace gradq
