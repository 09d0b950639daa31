#include "lib/tokenizer/tokenizer.h"

#include "absl/status/status.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/tokenizer/rust_interface.h"
#include "lib/tokenizer/utf8.h"

namespace gradq {
namespace {

const uint8_t* AsBytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

const GradqRustTokenizer* AsRust(const void* handle) {
  return static_cast<const GradqRustTokenizer*>(handle);
}

std::string TakeText(GradqRustBytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  gradq_tokenizer_free_bytes(bytes);
  return text;
}

absl::Status TakeError(std::string_view fact, GradqRustBytes error) {
  return absl::InvalidArgumentError(StrCat(fact, ": ", TakeText(error)));
}

absl::Status CheckUtf8(std::string_view what, std::string_view text) {
  const int64_t offset = FirstInvalidUtf8(text);
  if (offset < 0) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(what, " is not UTF-8: byte offset ", offset));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Open(std::string_view json) {
  GRADQ_RETURN_IF_ERROR(CheckUtf8("tokenizer.json", json));
  GradqRustTokenizer* handle = nullptr;
  GradqRustBytes error{};
  if (gradq_tokenizer_open(AsBytes(json), json.size(), &handle, &error) != 0) {
    return TakeError("invalid tokenizer.json", error);
  }
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(handle));
  if (gradq_tokenizer_vocab_size(handle, &tokenizer->vocab_size_, &error) != 0) {
    return TakeError("invalid vocabulary in tokenizer.json", error);
  }
  return tokenizer;
}

Tokenizer::~Tokenizer() { gradq_tokenizer_close(static_cast<GradqRustTokenizer*>(handle_)); }

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       bool add_special_tokens) const {
  GRADQ_RETURN_IF_ERROR(CheckUtf8("text", text));
  GradqRustIds ids{};
  GradqRustBytes error{};
  if (gradq_tokenizer_encode(AsRust(handle_), AsBytes(text), text.size(), add_special_tokens, &ids,
                             &error) != 0) {
    return TakeError("cannot tokenize the text", error);
  }
  std::vector<int32_t> result(ids.data, ids.data + ids.size);
  gradq_tokenizer_free_ids(ids);
  return result;
}

absl::StatusOr<std::string> Tokenizer::Decode(const std::vector<int32_t>& ids,
                                              bool skip_special_tokens) const {
  std::vector<uint32_t> checked;
  checked.reserve(ids.size());
  for (const int32_t id : ids) {
    // The crate leaves unknown ids out without a word; a gap in a text would look like the model's
    // work.
    if (id < 0 || id >= vocab_size_) {
      return absl::InvalidArgumentError(
          StrCat("token id outside the vocabulary: ", id, ", ", vocab_size_, " tokens"));
    }
    checked.push_back(static_cast<uint32_t>(id));
  }
  GradqRustBytes text{};
  GradqRustBytes error{};
  if (gradq_tokenizer_decode(AsRust(handle_), checked.data(), checked.size(), skip_special_tokens,
                             &text, &error) != 0) {
    return TakeError("cannot decode token ids", error);
  }
  return TakeText(text);
}

absl::StatusOr<std::vector<int32_t>> CutWindows(const std::vector<int32_t>& ids, int64_t length,
                                                int64_t max_windows, int64_t vocab_size) {
  if (length < 1 || max_windows < 0) {
    return absl::InvalidArgumentError(
        StrCat("window length must be at least 1 and the number of windows at least 0: ", length,
               ", ", max_windows));
  }
  const auto tokens = static_cast<int64_t>(ids.size());
  const int64_t available = tokens / length;
  if (available == 0) {
    return absl::InvalidArgumentError(
        StrCat("text shorter than one window: ", tokens, " tokens, ", length, " needed"));
  }
  if (available < max_windows) {
    return absl::InvalidArgumentError(StrCat("text has fewer windows than asked for: ", available,
                                             " of ", length, " tokens, ", max_windows, " asked"));
  }
  const int64_t windows = max_windows == 0 ? available : max_windows;
  std::vector<int32_t> result(ids.begin(), ids.begin() + windows * length);
  for (size_t i = 0; i < result.size(); ++i) {
    if (result[i] < 0 || result[i] >= vocab_size) {
      return absl::InvalidArgumentError(
          StrCat("token id outside the model's vocabulary: ", result[i], " at position ", i, ", ",
                 vocab_size, " tokens"));
    }
  }
  return result;
}

}  // namespace gradq
