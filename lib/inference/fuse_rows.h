#pragma once

// Linears that read the same input, put together as one: a launch for q, k and v, one for gate and
// up. Pure, thread-safe.

#include <span>

#include "lib/format/quantized_linear.h"

namespace gradq {

// Same encoding, width, group size and input.
bool CanFuseRows(std::span<const QuantizedLinear> linears);
// Rows of all of them, one linear below the other; CanFuseRows(linears), each has passed Validate.
QuantizedLinear FuseRows(std::span<const QuantizedLinear> linears);

}  // namespace gradq
