#pragma once

// The coordinator's HTTP port for probes and metrics: /healthz (the process lives), /readyz (it
// takes calls), /metrics (Prometheus text). Threads of its own.

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "services/coordinator/coordinator.h"

namespace httplib {
class Server;
}

namespace gradq {

class HttpServer {
 public:
  // `address`: HOST:PORT, port 0: chosen; beyond loopback only with `insecure`. INVALID_ARGUMENT;
  // FAILED_PRECONDITION when the port is taken. `coordinator` must outlive this.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           bool insecure, Coordinator* coordinator);
  ~HttpServer();

  std::string address() const { return address_; }
  void SetReady(bool ready) { ready_ = ready; }

 private:
  explicit HttpServer(Coordinator* coordinator);
  Coordinator& coordinator_;
  std::atomic<bool> ready_ = false;
  std::string address_;
  std::unique_ptr<httplib::Server> server_;
  std::thread thread_;
};

}  // namespace gradq
