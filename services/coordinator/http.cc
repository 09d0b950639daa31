#include "services/coordinator/http.h"

#include <httplib.h>

#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/coordinator/metrics.h"
#include "services/rpc/address.h"

namespace gradq {

HttpServer::HttpServer(Coordinator* coordinator) : coordinator_(*coordinator) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              bool insecure,
                                                              Coordinator* coordinator) {
  GRADQ_ASSIGN_OR_RETURN(HostPort listen, ParseHostPort(address));
  GRADQ_RETURN_IF_ERROR(CheckPlaintext(listen, insecure));
  std::unique_ptr<HttpServer> result(new HttpServer(coordinator));
  HttpServer* self = result.get();
  auto server = std::make_unique<httplib::Server>();
  server->new_task_queue = [] { return new httplib::ThreadPool(4); };
  // httplib would share a taken port (SO_REUSEPORT); only a quick restart needs leniency.
  server->set_socket_options([](socket_t socket) {
    const int on = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  });
  server->Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("ok\n", "text/plain");
  });
  server->Get("/readyz", [self](const httplib::Request&, httplib::Response& response) {
    response.status = self->ready_ ? 200 : 503;
    response.set_content(self->ready_ ? "ready\n" : "not ready\n", "text/plain");
  });
  auto metrics = std::make_shared<Metrics>(coordinator);  // lives as long as the handler
  server->Get("/metrics", [metrics](const httplib::Request&, httplib::Response& response) {
    const absl::StatusOr<std::string> text = metrics->Scrape();
    response.status = text.ok() ? 200 : 503;
    response.set_content(text.ok() ? *text : StrCat(text.status().message(), "\n"),
                         "text/plain; version=0.0.4");
  });
  if (listen.port == 0) {
    listen.port = server->bind_to_any_port(listen.host);
    if (listen.port <= 0) {
      return absl::FailedPreconditionError(StrCat("cannot listen for HTTP: ", address));
    }
  } else if (!server->bind_to_port(listen.host, listen.port)) {
    return absl::FailedPreconditionError(StrCat("HTTP port is taken or not allowed: ", address));
  }
  result->address_ = listen.ToString();
  result->server_ = std::move(server);
  result->thread_ = std::thread([self] { self->server_->listen_after_bind(); });
  return result;
}

HttpServer::~HttpServer() {
  if (server_ != nullptr) {
    // stop() is lost when it comes before the loop runs.
    while (thread_.joinable() && !server_->is_running()) std::this_thread::yield();
    server_->stop();
  }
  if (thread_.joinable()) thread_.join();
}

}  // namespace gradq
