#pragma once

// What a fuzz target gives the driver besides LLVMFuzzerTestOneInput: valid inputs to start from.
// libFuzzer itself ignores it.

#include <string>
#include <vector>

namespace gradq {

// Defined once per target, in its .cc.
std::vector<std::string> FuzzSeeds();

}  // namespace gradq
