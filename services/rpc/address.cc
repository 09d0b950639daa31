#include "services/rpc/address.h"

#include <arpa/inet.h>

#include <charconv>

#include "lib/base/strings.h"

namespace gradq {

std::string HostPort::ToString() const {
  if (host.find(':') != std::string::npos) return StrCat("[", host, "]:", port);
  return StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view text) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(StrCat("address is not HOST:PORT: '", text, "'"));
  };
  HostPort result;
  std::string_view port;
  if (text.starts_with('[')) {
    const size_t close = text.find("]:");
    if (close == std::string_view::npos) return bad();
    result.host = text.substr(1, close - 1);
    port = text.substr(close + 2);
  } else {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos || text.find(':', colon + 1) != std::string_view::npos) {
      return bad();
    }
    result.host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), result.port);
  if (error != std::errc() || end != port.data() + port.size() || result.port < 0 ||
      result.port > 65535 || result.host.empty() ||
      result.host.find_first_of("/ \t\n") != std::string::npos) {
    return bad();
  }
  return result;
}

bool IsLoopback(std::string_view host) {
  if (host == "localhost") return true;
  const std::string text(host);
  in_addr v4;
  if (inet_pton(AF_INET, text.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  return inet_pton(AF_INET6, text.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

absl::Status CheckPlaintext(const HostPort& address, bool insecure) {
  if (insecure || IsLoopback(address.host)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("address is not loopback and plaintext needs --insecure: ", address.ToString()));
}

}  // namespace gradq
