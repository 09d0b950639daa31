#include "services/inference_worker/text_stream.h"

#include <algorithm>
#include <utility>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

// Enough tokens for the longest character (4 bytes, a token each) and a neighbour.
constexpr size_t kCompany = 6;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<int32_t> before)
    : tokenizer_(tokenizer), tokens_(std::move(before)) {
  if (tokens_.size() > kCompany) tokens_.erase(tokens_.begin(), tokens_.end() - kCompany);
  shown_ = tokens_.size();
}

absl::StatusOr<std::string> TextStream::Push(int32_t token) {
  tokens_.push_back(token);
  return Take(/*all=*/false);
}

absl::StatusOr<std::string> TextStream::Finish() { return Take(/*all=*/true); }

absl::StatusOr<std::string> TextStream::Take(bool all) {
  GRADQ_ASSIGN_OR_RETURN(
      const std::string before,
      tokenizer_.Decode({tokens_.begin(), tokens_.begin() + static_cast<int64_t>(shown_)}));
  GRADQ_ASSIGN_OR_RETURN(const std::string now, tokenizer_.Decode(tokens_));
  // A character begun but not ended decodes as a replacement at the end. One that stays so for
  // longer than any character takes is really broken.
  const bool open = now.ends_with(kReplacement) && tokens_.size() - shown_ < kCompany;
  if (!all && open) return std::string();
  // The company may end in a broken character whose text the new tokens change.
  const auto [end, unused] = std::mismatch(before.begin(), before.end(), now.begin(), now.end());
  size_t common = static_cast<size_t>(end - before.begin());
  while (common > 0 && common < now.size() && (now[common] & 0xC0) == 0x80) --common;
  std::string piece = now.substr(common);
  shown_ = tokens_.size();
  if (tokens_.size() > kCompany) {
    tokens_.erase(tokens_.begin(), tokens_.end() - kCompany);
    shown_ = tokens_.size();
  }
  return piece;
}

}  // namespace gradq
