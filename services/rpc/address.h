#pragma once

// HOST:PORT as the binaries take it, and the rule that plaintext stays on loopback. Pure functions.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gradq {

struct HostPort {
  std::string host;  // without brackets
  int port = 0;

  // "host:port", IPv6 hosts in brackets.
  std::string ToString() const;
};

// INVALID_ARGUMENT naming the text: no port, a port outside 0..65535, an empty host.
absl::StatusOr<HostPort> ParseHostPort(std::string_view text);

// "localhost", 127.0.0.0/8 and ::1, by their text: no name is resolved.
bool IsLoopback(std::string_view host);

// INVALID_ARGUMENT unless `host` is loopback or `insecure` is given.
absl::Status CheckPlaintext(const HostPort& address, bool insecure);

}  // namespace gradq
