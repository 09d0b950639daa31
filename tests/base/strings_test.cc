#include "lib/base/strings.h"

#include <string>
#include <string_view>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "lib/base/clock.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"

namespace gradq {
namespace {

TEST(StrCat, TakesEveryKindOfText) {
  const std::string text = "b";
  const std::string_view standard("c|", 1);
  const absl::string_view abseil("d|", 1);
  EXPECT_EQ(StrCat("a", text, standard, abseil, 5, -6L, uint8_t{7}, 0.5), "abcd5-670.5");
  EXPECT_EQ(StrCat(), "");
  EXPECT_EQ(StrCat(std::string_view()), "");
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError(StrCat("odd: ", value));
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  GRADQ_ASSIGN_OR_RETURN(const int half, Half(value));
  GRADQ_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

absl::Status CheckDivisible(int value) {
  GRADQ_RETURN_IF_ERROR(Half(value).status());
  return absl::OkStatus();
}

TEST(StatusMacros, ReturnTheFirstError) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(std::string(Quarter(6).status().message()), "odd: 3");
  EXPECT_EQ(std::string(Quarter(5).status().message()), "odd: 5");
  EXPECT_TRUE(CheckDivisible(2).ok());
  EXPECT_FALSE(CheckDivisible(3).ok());
}

TEST(StatusMacrosDeathTest, ABrokenInvariantNamesItself) {
  GRADQ_CHECK(1 + 1 == 2);
  EXPECT_DEATH(GRADQ_CHECK(1 + 1 == 3), "check failed: 1 \\+ 1 == 3");
}

TEST(Clock, TheManualOneMovesWhenTold) {
  ManualClock clock;
  const absl::Duration start = clock.Monotonic();
  const absl::Time wall = clock.Wall();
  clock.Advance(absl::Seconds(5));
  EXPECT_EQ(clock.Monotonic() - start, absl::Seconds(5));
  EXPECT_EQ(clock.Wall() - wall, absl::Seconds(5));
  const absl::Duration before = Clock::Real().Monotonic();
  EXPECT_LE(before, Clock::Real().Monotonic());
}

TEST(Logging, WritesLinesFromItsLevelToStderrOnly) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  LogWarning("before ", "initialisation");
  InitLogging("worker w1", LogLevel::kInfo);
  LogDebug("hidden");
  LogInfo("{} tasks: ", 3);
  InitLogging("worker w1", LogLevel::kOff);
  LogError("off");
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  EXPECT_NE(lines.find("W [gradq] before initialisation\n"), std::string::npos) << lines;
  EXPECT_NE(lines.find("I [worker w1] {} tasks: 3\n"), std::string::npos) << lines;
  EXPECT_EQ(lines.find("hidden"), std::string::npos);
  EXPECT_EQ(lines.find("off"), std::string::npos);
}

TEST(Logging, KnowsItsLevels) {
  LogLevel level = LogLevel::kOff;
  EXPECT_TRUE(ParseLogLevel("debug", &level));
  EXPECT_EQ(level, LogLevel::kDebug);
  EXPECT_FALSE(ParseLogLevel("loud", &level));
  EXPECT_EQ(level, LogLevel::kDebug);
}

}  // namespace
}  // namespace gradq
