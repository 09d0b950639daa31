#pragma once

// Typed access to the keys of config.json with errors that name file, key and value. A key that is
// null counts as absent, as in transformers. The JSON value must outlive the reader.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace gradq {

inline constexpr std::string_view kConfigFile = "config.json";

class ConfigReader {
 public:
  // `prefix` stands before key names in messages: "rope_scaling." or "".
  ConfigReader(const nlohmann::json& object, std::string prefix)
      : object_(&object), prefix_(std::move(prefix)) {}

  // Present and not null.
  bool Has(const std::string& key) const;
  // Present, null or not.
  bool Mentions(const std::string& key) const;

  // Whole number in [min, max]; INVALID_ARGUMENT when absent without a default. A default is
  // returned as it is.
  absl::StatusOr<int64_t> Size(const std::string& key, int64_t min, int64_t max,
                               std::optional<int64_t> absent = std::nullopt) const;
  // Finite number.
  absl::StatusOr<double> Number(const std::string& key,
                                std::optional<double> absent = std::nullopt) const;
  absl::StatusOr<bool> Flag(const std::string& key, bool absent) const;
  absl::StatusOr<std::string> Word(const std::string& key, std::string_view absent) const;
  absl::StatusOr<std::vector<std::string>> Words(const std::string& key) const;
  // The first of a list of words; `absent` when there is no list or it is empty.
  absl::StatusOr<std::string> FirstWord(const std::string& key, std::string_view absent) const;
  // A reader of a nested object; one of an empty object when absent.
  absl::StatusOr<ConfigReader> Object(const std::string& key) const;

  // INVALID_ARGUMENT "config.json: <fact>: <value>".
  absl::Status Refuse(std::string_view fact, std::string_view value) const;

 private:
  absl::Status WrongType(const std::string& key, std::string_view expected) const;

  const nlohmann::json* object_;
  std::string prefix_;
};

}  // namespace gradq
