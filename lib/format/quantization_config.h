#pragma once

// The quantization_config that an artifact's config.json carries. Internal to lib/format.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "lib/catalog/quantizers.h"
#include "nlohmann/json.hpp"

namespace gradq {

// What the announcement depends on, per linear.
struct AnnouncedLinear {
  Encoding encoding = Encoding::kLut;
  int bits = 0;
  int64_t group_size = 0;
  int64_t in_features = 0;
  bool outliers = false;
};

// The version of FORMAT.md that a reader must know.
int VersionFor(std::span<const AnnouncedLinear> linears);

// compressed-tensors' pack-quantized where that format can hold every linear (affine, one width of
// 4 or 8 bits, one group size that divides all in-features, no outliers), gradq's own otherwise.
nlohmann::json MakeQuantizationConfig(std::span<const AnnouncedLinear> linears);

// The text of config.json with the member added (or, when it stood there as null, replaced); all
// other bytes stay where there was none.
absl::StatusOr<std::string> InsertQuantizationConfig(std::string_view config_json,
                                                     const nlohmann::json& quantization_config);

}  // namespace gradq
