#include "lib/tokenizer/utf8.h"

#include <string>

#include "gtest/gtest.h"

namespace gradq {
namespace {

// An encoder without ranges: the oracle for which sequences are shortest forms.
std::string Encode(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800)
    return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
  if (code < 0x10000) {
    return {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
            static_cast<char>(0x80 | (code & 63))};
  }
  return {static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
          static_cast<char>(0x80 | (code >> 6 & 63)), static_cast<char>(0x80 | (code & 63))};
}

TEST(Utf8, TakesEveryScalarValueAndNoSurrogate) {
  for (uint32_t code = 0; code < 0x110000; ++code) {
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    ASSERT_EQ(FirstInvalidUtf8("x" + Encode(code) + "y"), surrogate ? 1 : -1) << code;
  }
  for (uint32_t code = 0x110000; code < 0x200000; code += 0x1001) {
    ASSERT_EQ(FirstInvalidUtf8(Encode(code)), 0) << code;
  }
}

TEST(Utf8, NamesTheFirstBrokenByte) {
  EXPECT_EQ(FirstInvalidUtf8(""), -1);
  EXPECT_EQ(FirstInvalidUtf8(std::string_view("\0\0", 2)), -1);
  EXPECT_EQ(FirstInvalidUtf8("ab\x80"), 2);            // a continuation alone
  EXPECT_EQ(FirstInvalidUtf8("\xC3\xA9\xC0\x80"), 2);  // overlong NUL
  EXPECT_EQ(FirstInvalidUtf8("\xE0\x9F\xBF"), 0);      // overlong in three
  EXPECT_EQ(FirstInvalidUtf8("\xF0\x8F\xBF\xBF"), 0);  // overlong in four
  EXPECT_EQ(FirstInvalidUtf8("a\xE4\xB8"), 1);         // cut off at the end
  EXPECT_EQ(FirstInvalidUtf8("a\xF0\x9F\x98"
                             "b"),
            1);  // cut off by a letter
  EXPECT_EQ(FirstInvalidUtf8("\xFE"), 0);
  EXPECT_EQ(FirstInvalidUtf8("caf\xE9"), 3);  // Latin-1
}

}  // namespace
}  // namespace gradq
