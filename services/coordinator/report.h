#pragma once

// Texts that go with an artifact. Pure functions.

#include <string>
#include <vector>

#include "gradq/v1/job.pb.h"
#include "gradq/v1/store.pb.h"

namespace gradq {

// The object "recipe" of gradq.json: everything the artifact's bytes follow from besides the
// weights and the numerics class. Keys sorted.
std::string RecipeJson(const v1::JobRecord& record);

// report.json: what depends on the run and not on the recipe: times, hosts, workers, phases,
// measured losses.
std::string ReportJson(const v1::Job& job, const std::vector<v1::Task>& tasks,
                       const std::vector<v1::Worker>& workers);

}  // namespace gradq
