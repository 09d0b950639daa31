#include "services/rpc/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/address.h"
#include "services/rpc/limits_internal.h"

namespace gradq {
namespace {

std::chrono::system_clock::time_point DeadlineAfter(absl::Duration timeout) {
  return std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const std::string& target,
                                                    const DialOptions& options) {
  GRADQ_ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(target));
  if (address.port == 0) {
    return absl::InvalidArgumentError(StrCat("address to connect to has no port: ", target));
  }
  GRADQ_RETURN_IF_ERROR(CheckPlaintext(address, options.insecure));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // A restarted coordinator should be found again in seconds, not after gRPC's default two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Channels with equal arguments share a connection; this one keeps tensors off the control
  // connection.
  if (options.bulk) arguments.SetInt("gradq.bulk", 1);
  return grpc::CreateCustomChannel(address.ToString(), grpc::InsecureChannelCredentials(),
                                   arguments);
}

absl::Status WaitConnected(grpc::Channel& channel, const std::string& target,
                           absl::Duration timeout) {
  if (channel.WaitForConnected(DeadlineAfter(timeout))) return absl::OkStatus();
  return absl::DeadlineExceededError(
      StrCat("no answer from the server: ", target, ", ", absl::FormatDuration(timeout)));
}

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(DeadlineAfter(timeout));
}

absl::Status RetryUnavailable(absl::Duration total, absl::FunctionRef<bool()> stopped,
                              absl::FunctionRef<absl::Status()> attempt) {
  constexpr absl::Duration kFirst = absl::Milliseconds(100);
  constexpr absl::Duration kLongest = absl::Seconds(5);
  constexpr absl::Duration kSlice = absl::Milliseconds(50);
  thread_local std::mt19937_64 random{std::random_device{}()};
  const absl::Time end = absl::Now() + total;
  absl::Duration ceiling = kFirst;
  while (true) {
    absl::Status status = attempt();
    if (!absl::IsUnavailable(status) || stopped()) return status;
    // Full jitter: workers that lost the same coordinator must not return in step.
    const double share = std::uniform_real_distribution<double>(0.0, 1.0)(random);
    const absl::Time wake = absl::Now() + ceiling * share;
    if (wake >= end) return status;
    while (absl::Now() < wake) {
      if (stopped()) return status;
      absl::SleepFor(std::min(kSlice, wake - absl::Now()));
    }
    ceiling = std::min(kLongest, ceiling * 2);
  }
}

}  // namespace gradq
