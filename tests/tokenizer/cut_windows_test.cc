#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/tokenizer/tokenizer.h"

namespace gradq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int32_t> Counting(int count) {
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

// The message of the refusal, or "accepted".
std::string Refusal(const std::vector<int32_t>& ids, int64_t length, int64_t max_windows,
                    int64_t vocab_size) {
  const auto windows = CutWindows(ids, length, max_windows, vocab_size);
  if (windows.ok()) return "accepted";
  EXPECT_EQ(windows.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(windows.status().message());
}

TEST(CutWindows, DropsThePartialWindow) {
  EXPECT_THAT(CutWindows(Counting(8), 3, 0, 100).value(), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(CutWindows(Counting(6), 3, 0, 100).value(), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(CutWindows(Counting(8), 3, 1, 100).value(), ElementsAre(0, 1, 2));
  EXPECT_THAT(CutWindows(Counting(8), 3, 2, 100).value(), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(CutWindows, SaysWhatIsMissing) {
  EXPECT_THAT(Refusal({}, 512, 0, 10), HasSubstr("0 tokens, 512 needed"));
  EXPECT_THAT(Refusal(Counting(511), 512, 64, 1000), HasSubstr("511 tokens, 512 needed"));
  EXPECT_THAT(Refusal(Counting(8), 3, 3, 100), HasSubstr("2 of 3 tokens, 3 asked"));
  EXPECT_THAT(Refusal(Counting(8), 0, 0, 100), HasSubstr("0, 0"));
  EXPECT_THAT(Refusal(Counting(8), -3, 0, 100), HasSubstr("-3, 0"));
  EXPECT_THAT(Refusal(Counting(8), 3, -1, 100), HasSubstr("3, -1"));
  EXPECT_THAT(Refusal(Counting(8), INT64_MAX, 0, 100), HasSubstr("8 tokens"));
}

TEST(CutWindows, RefusesIdsThatTheModelDoesNotHave) {
  EXPECT_THAT(Refusal(Counting(6), 3, 0, 5), HasSubstr("5 at position 5, 5 tokens"));
  EXPECT_THAT(Refusal({0, -1}, 2, 0, 5), HasSubstr("-1 at position 1"));
  // One that no window holds hurts nobody.
  EXPECT_EQ(Refusal(Counting(6), 3, 1, 5), "accepted");
}

}  // namespace
}  // namespace gradq
