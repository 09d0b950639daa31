#pragma once

// One line per event on stderr: time, level, component, text. Thread-safe. The header shows no
// spdlog, so that files with ATen may include it.

#include <string_view>

#include "lib/base/strings.h"

namespace gradq {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// `component` names the process in each line ("worker w1"). Called in main before threads; until
// then lines from info up are written as "gradq".
void InitLogging(std::string_view component, LogLevel level);
// "debug", "info", "warning", "error", "off"; false for another word.
bool ParseLogLevel(std::string_view text, LogLevel* level);
void LogLine(LogLevel level, std::string_view text);

template <typename... Args>
void LogDebug(const Args&... args) {
  LogLine(LogLevel::kDebug, StrCat(args...));
}
template <typename... Args>
void LogInfo(const Args&... args) {
  LogLine(LogLevel::kInfo, StrCat(args...));
}
template <typename... Args>
void LogWarning(const Args&... args) {
  LogLine(LogLevel::kWarning, StrCat(args...));
}
template <typename... Args>
void LogError(const Args&... args) {
  LogLine(LogLevel::kError, StrCat(args...));
}

}  // namespace gradq
