#pragma once

// The table of quantizers: all a client needs to know of a method without libtorch. The solve
// functions are bound to these rows in lib/solvers/quantizer.h; a contract test keeps both sides
// equal.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/options.h"

namespace gradq {

// How codes become weights (FORMAT.md).
enum class Encoding { kLut, kAffine };

// kCoupled: guided, with the cross-channel terms that the Fisher blocks drop (docs/coupled.md).
enum class Objective { kGuided, kPlain, kCoupled };
absl::StatusOr<Objective> ParseObjective(std::string_view word);
std::string_view ObjectiveName(Objective objective);

struct QuantizerRow {
  std::string_view name;
  std::string_view summary;
  std::string_view paper;
  Encoding encoding;
  int min_bits;
  int max_bits;
  bool uses_objective;  // false: the objective is reported where its statistic exists, but not
                        // minimised
  std::span<const OptionSpec> options;
  // Statistics (names of lib/catalog/statistics.h) that a solve with these resolved options reads.
  std::vector<std::string_view> (*needs)(Objective objective, const OptionMap& options);
};

std::span<const QuantizerRow> Quantizers();
// INVALID_ARGUMENT naming the nearest known method.
absl::StatusOr<const QuantizerRow*> FindQuantizer(std::string_view name);

}  // namespace gradq
