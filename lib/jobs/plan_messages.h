#pragma once

// Recipe and rounds between their wire form and the catalog's types. Read by the coordinator and by
// workers. Pure functions.

#include <vector>

#include "absl/status/statusor.h"
#include "gradq/v1/job.pb.h"
#include "lib/catalog/program.h"
#include "lib/catalog/recipe.h"

namespace gradq {

// As given: options are not resolved. Empty words mean the defaults of job.proto.
// INVALID_ARGUMENT: the objective's name.
absl::StatusOr<Recipe> RecipeOf(const v1::Recipe& recipe);

v1::RoundPlan MessageOf(const Round& round);
Round RoundOf(const v1::RoundPlan& round);
std::vector<Round> RoundsOf(const v1::JobPlan& plan);

}  // namespace gradq
