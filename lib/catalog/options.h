#pragma once

// Options of a catalog row: names, defaults, help, and the check of what a user gave. Read by the
// CLI, the coordinator and the solvers.

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

using OptionMap = std::map<std::string, std::string>;

struct OptionSpec {
  enum class Type { kInt, kDouble, kChoice };
  std::string_view name = {};  // lower_snake; the CLI flag is the same with dashes
  Type type = Type::kInt;
  std::string_view default_value = {};
  // kInt, kDouble: inclusive range.
  double min = 0;
  double max = 0;
  // kChoice: the words, separated by '|'.
  std::string_view choices = {};
  std::string_view help = {};
};

// Every option of `specs` with its given or default value. INVALID_ARGUMENT for an unknown name
// (names the nearest known one), a value that does not parse, or one out of range.
absl::StatusOr<OptionMap> ResolveOptions(std::string_view row, std::span<const OptionSpec> specs,
                                         const OptionMap& given);

// Of a resolved map: the option must exist and parse (checked).
int OptionInt(const OptionMap& options, std::string_view name);
double OptionDouble(const OptionMap& options, std::string_view name);
const std::string& OptionWord(const OptionMap& options, std::string_view name);

// The known name with the smallest edit distance, empty when none is near.
std::string_view NearestName(std::string_view name, std::span<const std::string_view> known);

// "unknown method: lnk; did you mean lnq? Known: rtn, squeezellm, lnq". `kind` is the noun.
std::string UnknownNameMessage(std::string_view kind, std::string_view name,
                               std::span<const std::string_view> known);

}  // namespace gradq
