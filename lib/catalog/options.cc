#include "lib/catalog/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

template <typename Number>
std::optional<Number> ParseWhole(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Shortest form that reads back as the same double.
std::string ShortestText(double value) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

bool IsChoice(std::string_view choices, std::string_view word) {
  while (!choices.empty()) {
    const size_t bar = choices.find('|');
    if (choices.substr(0, bar) == word) return true;
    if (bar == std::string_view::npos) break;
    choices.remove_prefix(bar + 1);
  }
  return false;
}

absl::Status Refuse(std::string_view row, const OptionSpec& spec, std::string_view expected,
                    std::string_view value) {
  return absl::InvalidArgumentError(
      StrCat(row, ": option ", spec.name, " must be ", expected, ": ", value));
}

// The value in its one spelling, so that equal recipes are equal texts ("03" is "3").
absl::StatusOr<std::string> Canonical(std::string_view row, const OptionSpec& spec,
                                      std::string_view value) {
  switch (spec.type) {
    case OptionSpec::Type::kInt: {
      const std::optional<int64_t> number = ParseWhole<int64_t>(value);
      if (!number || static_cast<double>(*number) < spec.min ||
          static_cast<double>(*number) > spec.max) {
        return Refuse(row, spec,
                      StrCat("a whole number in ", static_cast<int64_t>(spec.min), "..",
                             static_cast<int64_t>(spec.max)),
                      value);
      }
      return StrCat(*number);
    }
    case OptionSpec::Type::kDouble: {
      const std::optional<double> number = ParseWhole<double>(value);
      if (!number || !std::isfinite(*number) || *number < spec.min || *number > spec.max) {
        return Refuse(row, spec,
                      StrCat("a number in ", ShortestText(spec.min), "..", ShortestText(spec.max)),
                      value);
      }
      return ShortestText(*number);
    }
    case OptionSpec::Type::kChoice:
      if (!IsChoice(spec.choices, value))
        return Refuse(row, spec, StrCat("one of ", spec.choices), value);
      return std::string(value);
  }
  return absl::InternalError("unreachable option type");
}

int64_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int64_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

absl::StatusOr<OptionMap> ResolveOptions(std::string_view row, std::span<const OptionSpec> specs,
                                         const OptionMap& given) {
  OptionMap resolved;
  for (const OptionSpec& spec : specs) {
    const auto it = given.find(std::string(spec.name));
    const std::string_view value =
        it == given.end() ? spec.default_value : std::string_view(it->second);
    GRADQ_ASSIGN_OR_RETURN(std::string canonical, Canonical(row, spec, value));
    resolved.emplace(spec.name, std::move(canonical));
  }
  for (const auto& [name, value] : given) {
    if (resolved.contains(name)) continue;
    std::vector<std::string_view> known;
    for (const OptionSpec& spec : specs) known.push_back(spec.name);
    return absl::InvalidArgumentError(UnknownNameMessage(StrCat("option of ", row), name, known));
  }
  return resolved;
}

int OptionInt(const OptionMap& options, std::string_view name) {
  const std::optional<int> value = ParseWhole<int>(OptionWord(options, name));
  GRADQ_CHECK(value.has_value());
  return *value;
}

double OptionDouble(const OptionMap& options, std::string_view name) {
  const std::optional<double> value = ParseWhole<double>(OptionWord(options, name));
  GRADQ_CHECK(value.has_value());
  return *value;
}

const std::string& OptionWord(const OptionMap& options, std::string_view name) {
  const auto it = options.find(std::string(name));
  GRADQ_CHECK(it != options.end());
  return it->second;
}

std::string_view NearestName(std::string_view name, std::span<const std::string_view> known) {
  // Longer input than any name we know says nothing and would cost quadratic time.
  if (name.size() > 64) return {};
  std::string_view nearest;
  int64_t smallest = 0;
  for (const std::string_view candidate : known) {
    const int64_t distance = EditDistance(name, candidate);
    const int64_t longer = static_cast<int64_t>(std::max(name.size(), candidate.size()));
    if (distance * 3 > longer * 2) continue;
    if (nearest.empty() || distance < smallest) {
      nearest = candidate;
      smallest = distance;
    }
  }
  return nearest;
}

std::string UnknownNameMessage(std::string_view kind, std::string_view name,
                               std::span<const std::string_view> known) {
  std::string message = StrCat("unknown ", kind, ": ", name.substr(0, 64));
  const std::string_view nearest = NearestName(name, known);
  if (!nearest.empty()) message += StrCat("; did you mean ", nearest, "?");
  message += " Known:";
  if (known.empty()) message += " none";
  for (size_t i = 0; i < known.size(); ++i) message += StrCat(i == 0 ? " " : ", ", known[i]);
  return message;
}

}  // namespace gradq
