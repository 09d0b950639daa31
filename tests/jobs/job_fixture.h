#pragma once

// A small job as the service would hand it to the core.

#include "lib/jobs/coordinator_core.h"

namespace gradq {

// Llama of `blocks` blocks; 2 chunks of calibration text; lnq guided, options resolved.
NewJob TinyJob(int blocks);
// Fills what the recipe does not give of its options from the catalog's defaults.
void ResolveRecipe(v1::JobSpec* spec);
// The round of a lease's task.
const v1::RoundPlan& RoundOfLease(const v1::Lease& lease);
// Chunks of the round's nodes with gradients.
int SummedChunks(const v1::Lease& lease);
// What a worker reports for the lease. A shard's digest follows from all that the lease tells the
// solve; the loss of a node is 3 + t (0.5 + |variant - 2| / 10): variant 2 is the best one.
v1::TaskResult FakeResult(const v1::Lease& lease);
// Bytes a worker needs for this job, with the stages it asks for.
int64_t JustEnoughMemory(const NewJob& job);

}  // namespace gradq
