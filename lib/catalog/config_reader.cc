#include "lib/catalog/config_reader.h"

#include <cmath>
#include <limits>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

using nlohmann::json;

// A value as text for a message, cut short: it may be anything.
std::string Shown(const json& value) {
  if (value.is_structured()) return value.type_name();
  std::string text = value.dump();
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

}  // namespace

bool ConfigReader::Has(const std::string& key) const {
  const auto it = object_->find(key);
  return it != object_->end() && !it->is_null();
}

bool ConfigReader::Mentions(const std::string& key) const { return object_->contains(key); }

absl::Status ConfigReader::Refuse(std::string_view fact, std::string_view value) const {
  return absl::InvalidArgumentError(StrCat(kConfigFile, ": ", fact, ": ", value));
}

absl::Status ConfigReader::WrongType(const std::string& key, std::string_view expected) const {
  return Refuse(StrCat(prefix_, key, " must be ", expected), Shown((*object_)[key]));
}

absl::StatusOr<int64_t> ConfigReader::Size(const std::string& key, int64_t min, int64_t max,
                                           std::optional<int64_t> absent) const {
  if (!Has(key)) {
    if (absent) return *absent;
    return absl::InvalidArgumentError(StrCat(kConfigFile, ": key missing: ", prefix_, key));
  }
  const json& value = (*object_)[key];
  const std::string expected = StrCat("a whole number in ", min, "..", max);
  if (!value.is_number_integer()) return WrongType(key, expected);
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return WrongType(key, expected);
  }
  const int64_t number = value.get<int64_t>();
  if (number < min || number > max) return WrongType(key, expected);
  return number;
}

absl::StatusOr<double> ConfigReader::Number(const std::string& key,
                                            std::optional<double> absent) const {
  if (!Has(key)) {
    if (absent) return *absent;
    return absl::InvalidArgumentError(StrCat(kConfigFile, ": key missing: ", prefix_, key));
  }
  const json& value = (*object_)[key];
  if (!value.is_number() || !std::isfinite(value.get<double>()))
    return WrongType(key, "a finite number");
  return value.get<double>();
}

absl::StatusOr<bool> ConfigReader::Flag(const std::string& key, bool absent) const {
  if (!Has(key)) return absent;
  const json& value = (*object_)[key];
  if (!value.is_boolean()) return WrongType(key, "true or false");
  return value.get<bool>();
}

absl::StatusOr<std::string> ConfigReader::Word(const std::string& key,
                                               std::string_view absent) const {
  if (!Has(key)) return std::string(absent);
  const json& value = (*object_)[key];
  if (!value.is_string()) return WrongType(key, "a string");
  return value.get<std::string>();
}

absl::StatusOr<std::vector<std::string>> ConfigReader::Words(const std::string& key) const {
  std::vector<std::string> words;
  if (!Has(key)) return words;
  const json& value = (*object_)[key];
  if (!value.is_array()) return WrongType(key, "a list of strings");
  for (const json& entry : value) {
    if (!entry.is_string()) return WrongType(key, "a list of strings");
    words.push_back(entry.get<std::string>());
  }
  return words;
}

absl::StatusOr<std::string> ConfigReader::FirstWord(const std::string& key,
                                                    std::string_view absent) const {
  GRADQ_ASSIGN_OR_RETURN(std::vector<std::string> words, Words(key));
  if (words.empty()) return std::string(absent);
  return std::move(words.front());
}

absl::StatusOr<ConfigReader> ConfigReader::Object(const std::string& key) const {
  static const json kEmpty = json::object();
  if (!Has(key)) return ConfigReader(kEmpty, StrCat(prefix_, key, "."));
  const json& value = (*object_)[key];
  if (!value.is_object()) return WrongType(key, "an object");
  return ConfigReader(value, StrCat(prefix_, key, "."));
}

}  // namespace gradq
