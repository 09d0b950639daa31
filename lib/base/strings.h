#pragma once

// StrCat for messages. Debian's Abseil is built with its own string_view type, which absl::StrCat
// wants; this one takes std::string_view as well, so that our interfaces use the standard type
// everywhere.

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace gradq {

// What absl::StrCat accepts for one argument: standard string views are rewrapped, everything else
// passes as it is.
template <typename T>
decltype(auto) ToAlphaNumArgument(const T& value) {
  if constexpr (std::is_convertible_v<const T&, std::string_view> &&
                !std::is_convertible_v<const T&, absl::string_view>) {
    const std::string_view view = value;
    return absl::string_view(view.data(), view.size());
  } else {
    return (value);
  }
}

template <typename... Args>
std::string StrCat(const Args&... args) {
  return absl::StrCat(ToAlphaNumArgument(args)...);
}

}  // namespace gradq
