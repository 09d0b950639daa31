#include "services/coordinator/windows.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little end");

absl::Status Prefixed(std::string_view what, const absl::Status& status) {
  return absl::Status(status.code(), StrCat(what, ": ", status.message()));
}

// Steele, Lea, Flood 2014.
uint64_t SplitMix64(uint64_t& state) {
  uint64_t z = (state += 0x9E3779B97F4A7C15);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// The first `count` of a random order of 0 .. total-1.
std::vector<int64_t> Draw(int64_t total, int64_t count, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(total));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t i = 0; i < count; ++i) {
    // The bias of the remainder is below 2^-40 for any text, and the same everywhere.
    const auto rest = static_cast<uint64_t>(total - i);
    std::swap(order[i], order[i + static_cast<int64_t>(SplitMix64(seed) % rest)]);
  }
  order.resize(static_cast<size_t>(count));
  return order;
}

}  // namespace

absl::StatusOr<Windows> MakeWindows(const Tokenizer& tokenizer, std::string_view text,
                                    const WindowRequest& request) {
  if (text.empty()) return absl::InvalidArgumentError(StrCat(request.what, " is empty"));
  const auto ids = tokenizer.Encode(text);
  if (!ids.ok()) return Prefixed(request.what, ids.status());
  const int64_t in_order = request.shuffle_seed.has_value() ? 0 : request.windows;
  const auto cut = CutWindows(*ids, request.length, in_order, request.vocab_size);
  if (!cut.ok()) return Prefixed(request.what, cut.status());

  const int64_t available = static_cast<int64_t>(cut->size()) / request.length;
  Windows result;
  result.windows = request.windows == 0 ? available : request.windows;
  if (available < result.windows) {
    return absl::InvalidArgumentError(StrCat(request.what, ": fewer windows of ", request.length,
                                             " tokens than asked for: ", available, ", ",
                                             result.windows));
  }
  const size_t window_bytes = static_cast<size_t>(request.length) * sizeof(int32_t);
  result.tokens.resize(static_cast<size_t>(result.windows) * window_bytes);
  if (!request.shuffle_seed.has_value()) {
    std::memcpy(result.tokens.data(), cut->data(), result.tokens.size());
    return result;
  }
  char* out = result.tokens.data();
  for (const int64_t window : Draw(available, result.windows, *request.shuffle_seed)) {
    std::memcpy(out, cut->data() + window * request.length, window_bytes);
    out += window_bytes;
  }
  return result;
}

}  // namespace gradq
