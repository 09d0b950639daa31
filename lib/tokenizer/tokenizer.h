#pragma once

// Hugging Face tokenizer.json through the `tokenizers` crate (lib/tokenizer/rust). Thread-safe
// after Open.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

class Tokenizer {
 public:
  // `json`: the text of tokenizer.json. INVALID_ARGUMENT with the crate's message.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Open(std::string_view json);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // INVALID_ARGUMENT (with the byte offset) when `text` is not UTF-8. Adds the tokenizer's own
  // special tokens when asked to.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens = true) const;
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids,
                                     bool skip_special_tokens = true) const;
  // One more than the largest token id, added tokens included (ids may have gaps).
  int64_t vocab_size() const { return vocab_size_; }

 private:
  explicit Tokenizer(void* handle) : handle_(handle) {}
  void* handle_;
  int64_t vocab_size_ = 0;
};

// Cuts a tokenized text into non-overlapping windows of `length`, the last partial one dropped; the
// first `max_windows` (0: all). INVALID_ARGUMENT: text shorter than one window or fewer windows
// than asked for (with both numbers), an id ≥ vocab_size.
absl::StatusOr<std::vector<int32_t>> CutWindows(const std::vector<int32_t>& ids, int64_t length,
                                                int64_t max_windows, int64_t vocab_size);

}  // namespace gradq
