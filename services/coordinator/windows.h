#pragma once

// A job's texts as token windows: tokenized once when the job is accepted, the same for every
// worker. Pure functions.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "lib/tokenizer/tokenizer.h"

namespace gradq {

struct WindowRequest {
  std::string_view what;                 // "calibration text", for messages
  int64_t length = 0;                    // tokens per window
  int64_t windows = 0;                   // 0: as many as there are
  std::optional<uint64_t> shuffle_seed;  // unset: in order from the start
  int64_t vocab_size = 0;
};

struct Windows {
  std::string tokens;  // int32, little end, [windows, length]
  int64_t windows = 0;
};

// INVALID_ARGUMENT: empty, not UTF-8, fewer windows than asked for, an id outside the vocabulary.
// With a seed, windows are drawn without replacement from the whole text's windows by a
// Fisher-Yates shuffle over SplitMix64: the same on every machine.
absl::StatusOr<Windows> MakeWindows(const Tokenizer& tokenizer, std::string_view text,
                                    const WindowRequest& request);

}  // namespace gradq
