#pragma once

// A small job as the service would hand it to the core.

#include "lib/jobs/coordinator_core.h"

namespace gradq {

// Llama of `blocks` blocks; 2 chunks of calibration text; lnq guided, options resolved.
NewJob TinyJob(int blocks);
// Fills the recipe's options from the catalog's defaults.
void ResolveRecipe(v1::JobSpec* spec);
// Bytes a worker needs for this job, with the stages it asks for.
int64_t JustEnoughMemory(const NewJob& job);

}  // namespace gradq
