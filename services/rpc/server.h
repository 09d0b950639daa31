#pragma once

// Server side: one gRPC server with reflection and the standard health service. Used by every
// binary.

#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gradq {

struct ListenOptions {
  std::string address = "127.0.0.1:0";  // port 0: chosen
  bool insecure = false;                // plaintext beyond loopback
  // Resource-quota threads of the server; RPC threads never touch tensors.
  int max_threads = 64;
};

class RpcServer {
 public:
  // INVALID_ARGUMENT (address), FAILED_PRECONDITION (port taken, naming it). `services` must
  // outlive the server.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const ListenOptions& options, const std::vector<grpc::Service*>& services);
  ~RpcServer();

  int port() const { return port_; }
  // HOST:PORT with the chosen port.
  std::string address() const;
  // Readiness of the standard health service.
  void SetServing(bool serving);
  // Refuses new calls, waits for running ones up to `grace`, then cancels them.
  void Shutdown(absl::Duration grace);

 private:
  RpcServer() = default;
  std::unique_ptr<grpc::Server> server_;
  std::string host_;
  int port_ = 0;
};

}  // namespace gradq
