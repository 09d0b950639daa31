#include "services/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <mutex>
#include <string>
#include <system_error>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/address.h"
#include "services/rpc/limits_internal.h"

namespace gradq {
namespace {

// gRPC says only that it could not listen, and writes to stderr; a bind of our own tells why.
absl::Status TryBind(const HostPort& address) {
  const std::string text = address.ToString();
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(
        StrCat("cannot resolve the address to listen on: ", text, ": ", gai_strerror(error)));
  }
  int reason = 0;
  for (const addrinfo* it = found; it != nullptr && reason == 0; it = it->ai_next) {
    const int fd = socket(it->ai_family, it->ai_socktype | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, it->ai_addr, it->ai_addrlen) != 0) reason = errno;
    close(fd);
  }
  freeaddrinfo(found);
  if (reason == EADDRINUSE) {
    return absl::FailedPreconditionError(StrCat("port is taken by another process: ", text));
  }
  if (reason == EADDRNOTAVAIL) {
    return absl::InvalidArgumentError(StrCat("address is not one of this machine's: ", text));
  }
  if (reason == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      StrCat("cannot listen: ", text, ": ", std::generic_category().message(reason)));
}

void EnablePluginsOnce() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const ListenOptions& options, const std::vector<grpc::Service*>& services) {
  GRADQ_ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(options.address));
  GRADQ_RETURN_IF_ERROR(CheckPlaintext(address, options.insecure));
  GRADQ_RETURN_IF_ERROR(TryBind(address));
  EnablePluginsOnce();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &port);
  // Linux would let a second process share the port and take half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  grpc::ResourceQuota quota("gradq");
  quota.SetMaxThreads(options.max_threads);
  builder.SetResourceQuota(quota);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    GRADQ_RETURN_IF_ERROR(TryBind(address));  // lost a race for the port
    return absl::FailedPreconditionError(StrCat("cannot listen: ", address.ToString()));
  }

  std::unique_ptr<RpcServer> result(new RpcServer());
  result->server_ = std::move(server);
  result->host_ = address.host;
  result->port_ = port;
  return result;
}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

std::string RpcServer::address() const { return HostPort{host_, port_}.ToString(); }

void RpcServer::SetServing(bool serving) {
  if (auto* health = server_->GetHealthCheckService()) health->SetServingStatus(serving);
}

void RpcServer::Shutdown(absl::Duration grace) {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(grace));
  server_->Wait();
  server_.reset();
}

}  // namespace gradq
