#pragma once

// JSON from outside: config.json, safetensors headers, gradq.json. Stricter than the library's own
// parser, which keeps the last of two equal keys without a word and nests without bound. Pure
// function, thread-safe.

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace gradq {

// Depth to which arrays and objects may nest.
inline constexpr int kMaxJsonDepth = 64;

// The value of a whole text. INVALID_ARGUMENT "<what>: not valid JSON: ..." with the place: bad
// syntax or UTF-8, a key twice in one object, deeper than kMaxJsonDepth, trailing text.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view what);

// The same, and the value must be an object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view what);

// The one text of a value: keys sorted, numbers in the shortest form that reads back as the same
// double (3.0 is "3"), UTF-8 kept. `indent` 0 puts everything on one line. Numbers must be finite
// (checked).
std::string CanonicalJson(const nlohmann::json& value, int indent = 0);

}  // namespace gradq
