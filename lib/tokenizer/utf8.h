#pragma once

// UTF-8 validation, to name the byte where a text that people give us is broken. Pure, thread-safe.

#include <cstdint>
#include <string_view>

namespace gradq {

// The offset of the first byte that does not begin a well-formed sequence (RFC 3629: no overlong
// forms, no surrogates, nothing above U+10FFFF); -1 when all of `text` is well-formed.
int64_t FirstInvalidUtf8(std::string_view text);

}  // namespace gradq
