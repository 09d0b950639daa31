#pragma once

// What is to be solved, as a user gives it: quantizer, outlier policy, widths. The same in the CLI,
// the coordinator, a worker and a local run (v1.Recipe is its wire form).

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/options.h"
#include "lib/catalog/quantizers.h"

namespace gradq {

struct Recipe {
  std::string method = "lnq";
  int bits = 3;
  Objective objective = Objective::kGuided;
  int groups = 4;
  OptionMap options;  // of the quantizer
  std::string outliers = "none";
  OptionMap outlier_options;
  // Mixed widths: every linear is solved at 2, 3 and 4 bits and the widths are chosen under this
  // budget of stored bits per quantized weight; `bits` is then ignored.
  std::optional<double> average_bits;
  // q/k/v of a block, and gate/up, need not share a width.
  bool free_widths = false;
};

// Every option with its given or default value. INVALID_ARGUMENT: a name, an option or a range
// (naming it), or parts that don't go together.
absl::StatusOr<Recipe> ResolveRecipe(Recipe recipe);

// One way a linear is solved. A job whose recipe leaves something open solves all and decides.
struct Variant {
  int bits = 0;
  double shrinkage = 1;  // of the coupled objective; 1: uncoupled
  bool operator==(const Variant&) const = default;
};

// Of a resolved recipe; a single one where nothing is open. The widths 2, 3, 4 with average_bits;
// with the coupled objective and --shrinkage auto the uncoupled solution first, then falling
// shrinkages.
std::vector<Variant> VariantsOf(const Recipe& recipe);

// The resolved recipe with one iteration of its quantizer: cheap solves that tell shrinkages apart.
Recipe PilotOf(Recipe recipe);

}  // namespace gradq
