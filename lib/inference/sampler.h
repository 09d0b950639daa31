#pragma once

// Choice of the next token. Pure, thread-safe.

#include <cstdint>
#include <span>

namespace gradq {

struct Sampling {
  double temperature = 0;  // 0: greedy
  double top_p = 1;        // in (0, 1]
  uint64_t seed = 0;
};

// One id of `logits` [vocab], not empty. Greedy: the largest, of equals the lowest id. Else a draw
// from softmax(logits / temperature) over the fewest most probable ids whose mass reaches top_p.
// `step` numbers the draws of a sequence: one draw does not depend on earlier calls.
int32_t SampleToken(std::span<const float> logits, const Sampling& sampling, uint64_t step);

}  // namespace gradq
