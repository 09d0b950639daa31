#include <string>

#include "lib/base/status_macros.h"
#include "lib/format/exports/writers.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/quantization_config.h"

namespace gradq {
namespace {

absl::Status AppendTensors(const Artifact& artifact, const std::string& name, AppendBytes append) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, artifact.ReadLinear(name));
  return append(LinearTensorBytes(linear));
}

}  // namespace

absl::Status ExportCompressedTensors(const ExportInputs& inputs, FolderWriter& folder) {
  return WriteExportedModel(
      inputs, kQuantizationConfigKey, CompressedTensorsConfig(inputs.linears),
      [&](const ExportedLinear& linear) -> WeightItem {
        QuantizedLinear sizes;
        sizes.name = linear.name;
        sizes.encoding = linear.encoding;
        sizes.bits = linear.bits;
        sizes.out_features = linear.out_features;
        sizes.in_features = linear.in_features;
        sizes.group_size = linear.group_size;
        return {.infos = LinearTensorInfos(sizes),
                .write = [&artifact = inputs.artifact, name = linear.name](AppendBytes append) {
                  return AppendTensors(artifact, name, append);
                }};
      },
      folder);
}

}  // namespace gradq
