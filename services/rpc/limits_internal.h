#pragma once

// Message sizes and pings that client and server must agree on.

namespace gradq {

// Bulk travels in pieces of 1 MiB; jobs with long plans and pages of tasks need more.
inline constexpr int kMaxMessageBytes = 16 << 20;
// Pings only keep connections through idle NATs open; heartbeats find failures.
inline constexpr int kKeepaliveMs = 60'000;
inline constexpr int kKeepaliveTimeoutMs = 20'000;
// What the server tolerates without GOAWAY (too_many_pings).
inline constexpr int kMinPingIntervalMs = 30'000;

}  // namespace gradq
