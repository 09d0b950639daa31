#include "lib/catalog/recipe.h"

#include <array>
#include <cstdlib>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/outlier_policies.h"

namespace gradq {
namespace {

constexpr std::array kMixedWidths = {2, 3, 4};
// What --shrinkage auto tries beside the uncoupled solution.
constexpr std::array kShrinkages = {0.7, 0.5};

bool IsCoupled(const Recipe& recipe) {
  return recipe.objective == Objective::kCoupled && recipe.options.contains("shrinkage");
}

absl::Status CheckWidths(const Recipe& recipe, const QuantizerRow& row) {
  const int low = kMixedWidths.front(), high = kMixedWidths.back();
  if (!recipe.average_bits.has_value()) {
    if (recipe.bits >= row.min_bits && recipe.bits <= row.max_bits) return absl::OkStatus();
    return absl::InvalidArgumentError(StrCat("bits of ", row.name, " outside ", row.min_bits, "..",
                                             row.max_bits, ": ", recipe.bits));
  }
  if (row.min_bits > low || row.max_bits < high) {
    return absl::InvalidArgumentError(
        StrCat("method has no widths of 2, 3 and 4 bits to mix: ", row.name));
  }
  return absl::OkStatus();
}

// What no single part can refuse.
absl::Status CheckTogether(const Recipe& recipe, const QuantizerRow& row) {
  if (recipe.objective == Objective::kCoupled && !recipe.options.contains("shrinkage")) {
    return absl::InvalidArgumentError(
        StrCat("objective coupled is solved by lnq only: ", row.name));
  }
  if (IsCoupled(recipe) && OptionWord(recipe.options, "solver") == "published") {
    return absl::InvalidArgumentError("objective coupled needs --solver best");
  }
  if (IsCoupled(recipe) && recipe.average_bits.has_value() &&
      OptionWord(recipe.options, "shrinkage") == "auto") {
    return absl::InvalidArgumentError(
        "average bits with the coupled objective need a --shrinkage that is given, not auto");
  }
  if (const auto grid = recipe.options.find("grid_bits");
      grid != recipe.options.end() && grid->second != "0") {
    if (recipe.average_bits.has_value())
      return absl::InvalidArgumentError("average bits and grid_bits exclude each other");
    if (recipe.bits > std::atoi(grid->second.c_str())) {
      return absl::InvalidArgumentError(
          StrCat("grid_bits below the bits of the codebooks: ", grid->second, ", ", recipe.bits));
    }
  }
  const OptionMap& outliers = recipe.outlier_options;
  if (recipe.average_bits.has_value() && outliers.contains("scope") &&
      OptionWord(outliers, "scope") != "linear") {
    return absl::InvalidArgumentError(StrCat("average bits go with --outlier-scope linear only: ",
                                             OptionWord(outliers, "scope")));
  }
  for (const char* part : {"sensitive_fraction", "detach_fraction"}) {
    if (outliers.contains(part) &&
        OptionDouble(outliers, part) > OptionDouble(outliers, "fraction")) {
      return absl::InvalidArgumentError(
          StrCat(part, " above the whole fraction: ", OptionDouble(outliers, part), ", ",
                 OptionDouble(outliers, "fraction")));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Recipe> ResolveRecipe(Recipe recipe) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(recipe.method));
  GRADQ_RETURN_IF_ERROR(CheckWidths(recipe, *row));
  GRADQ_ASSIGN_OR_RETURN(recipe.options, ResolveOptions(row->name, row->options, recipe.options));
  GRADQ_ASSIGN_OR_RETURN(const OutlierPolicyRow* policy, FindOutlierPolicy(recipe.outliers));
  GRADQ_ASSIGN_OR_RETURN(recipe.outlier_options,
                         ResolveOptions(policy->name, policy->options, recipe.outlier_options));
  GRADQ_RETURN_IF_ERROR(CheckTogether(recipe, *row));
  return recipe;
}

std::vector<Variant> VariantsOf(const Recipe& recipe) {
  double shrinkage = 1;
  bool open = false;
  if (IsCoupled(recipe)) {
    const std::string& word = OptionWord(recipe.options, "shrinkage");
    open = word == "auto";
    if (!open) shrinkage = std::strtod(word.c_str(), nullptr);
  }
  std::vector<Variant> variants;
  if (recipe.average_bits.has_value()) {
    for (const int bits : kMixedWidths) variants.push_back({bits, shrinkage});
    return variants;
  }
  variants.push_back({recipe.bits, shrinkage});
  if (open) {
    for (const double tried : kShrinkages) variants.push_back({recipe.bits, tried});
  }
  return variants;
}

Recipe PilotOf(Recipe recipe) {
  if (recipe.options.contains("iterations")) recipe.options["iterations"] = "1";
  return recipe;
}

}  // namespace gradq
