#pragma once

// Gathers what a round's Decide task reads from the stored results of a job, and what follows from
// a decision for reports. Pure functions of JobStates. Called by the core.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/jobs/decide.h"
#include "lib/jobs/job_state.h"

namespace gradq {

// Everything that the round's decision follows from is durable.
bool DecisionReady(const JobState& job, int round);

// `shards`: the job whose shards the widths are chosen from (the job itself, or its source_job).
// Errors of decide.h.
absl::StatusOr<v1::Decision> MakeDecision(const JobState& job, const JobState& shards, int round);

// Round of a job with mixed widths that solved all of them; -1: it has none.
int WidthsRound(const JobState& job);
// The job's shards of all widths stay after its end (CoreOptions.retention): no later round depends
// on the choice.
bool KeepsShards(const JobState& job);
// The shards of that round by linear; tied linears as the recipe says.
std::vector<PricedLinear> PricedLinears(const JobState& shards, bool free_widths);

// Loss of a node of the round, nats per token; nullopt until known.
std::optional<double> NodeLoss(const JobState& job, int round, int node);
// The round's integral against the measured loss difference; nullopt until known, or where the
// round integrates no path.
std::optional<v1::PathCheck> CheckPath(const JobState& job, int round);

}  // namespace gradq
