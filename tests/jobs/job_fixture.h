#pragma once

// A small job as the service would hand it to the core.

#include "lib/jobs/coordinator_core.h"

namespace gradq {

// Llama of `blocks` blocks; 2 chunks of calibration text; lnq guided, options resolved.
NewJob TinyJob(int blocks);
// Fills the recipe's options from the catalog's defaults.
void ResolveRecipe(v1::JobSpec* spec);

}  // namespace gradq
