#pragma once

// Text of a sequence of tokens as it grows: what a token adds is held back until its characters are
// complete, so that every piece is UTF-8 and all pieces together are the decoded text. One thread.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/tokenizer/tokenizer.h"

namespace gradq {

class TextStream {
 public:
  // `before` are tokens whose text is known already (a prompt); they decide how the first new ones
  // read (leading spaces). `tokenizer` must outlive this.
  TextStream(const Tokenizer& tokenizer, std::vector<int32_t> before);

  // The text that became complete with `token`; may be empty.
  absl::StatusOr<std::string> Push(int32_t token);
  // What is still held back, with U+FFFD for characters that never became complete.
  absl::StatusOr<std::string> Finish();

 private:
  absl::StatusOr<std::string> Take(bool all);

  const Tokenizer& tokenizer_;
  // Tokens [0, shown_) have been shown; a few of them stay to decode the next in their company.
  std::vector<int32_t> tokens_;
  size_t shown_;
};

}  // namespace gradq
