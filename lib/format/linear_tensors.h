#pragma once

// The tensors of one quantized linear as they lie in a shard and in an artifact (FORMAT.md): names,
// types, shapes, bytes, both ways. Internal to lib/format.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/format/quantized_linear.h"
#include "lib/format/tensor_source.h"
#include "nlohmann/json.hpp"

namespace gradq {

// Names, types and shapes in file order; needs name, encoding, bits, sizes and group_size only, and
// the outliers or their number.
std::vector<TensorInfo> LinearTensorInfos(const QuantizedLinear& linear);
std::vector<TensorInfo> LinearTensorInfos(const QuantizedLinear& linear, int64_t outliers);
// Bytes of LinearTensorInfos(linear)[i], one after another.
std::string LinearTensorBytes(const QuantizedLinear& linear);

// The number of outliers that the tensors of `linear` hold, 0 where it has no such tensors. `find`
// as for ReadLinearTensors. INVALID_ARGUMENT naming the linear when outlier_col is missing or no
// list.
absl::StatusOr<int64_t> StoredOutliers(
    const std::string& linear,
    const std::function<absl::StatusOr<TensorInfo>(const std::string& name)>& find);

// Fills packed, lut, scale, zero_point and outliers of a linear whose other members are set. `find`
// gives a tensor's description or NOT_FOUND, `read` its bytes. INVALID_ARGUMENT for another type or
// shape than LinearTensorInfos, or values Validate refuses.
absl::Status ReadLinearTensors(
    const std::function<absl::StatusOr<TensorInfo>(const std::string& name)>& find,
    const std::function<absl::Status(const std::string& name, std::span<std::byte> out)>& read,
    QuantizedLinear* linear);

// Encoding, sizes and record as the JSON object of gradq.json, and back. Reading refuses missing
// and wrong members, naming `where`.
nlohmann::json LinearRecordJson(const QuantizedLinear& linear);
absl::StatusOr<QuantizedLinear> ParseLinearRecord(const nlohmann::json& record,
                                                  std::string_view where);

}  // namespace gradq
