// gradq-coordinator: jobs, leases and artifacts behind one gRPC port, probes and metrics behind an
// HTTP port.

#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "lib/base/logging.h"
#include "services/coordinator/coordinator.h"
#include "services/coordinator/http.h"
#include "services/coordinator/job_service.h"
#include "services/coordinator/worker_service.h"
#include "services/rpc/flags.h"
#include "services/rpc/port_file.h"
#include "services/rpc/server.h"
#include "services/rpc/signals.h"

namespace gradq {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(10);

int Fail(const absl::Status& status) {
  LogError(status.message());
  return 1;
}

int Serve(const ServerFlags& flags, const CoordinatorOptions& options,
          const std::string& http_address) {
  auto coordinator = Coordinator::Start(options);
  if (!coordinator.ok()) return Fail(coordinator.status());
  JobServiceImpl jobs(coordinator->get());
  WorkerServiceImpl workers(coordinator->get());
  ListenOptions listen;
  listen.address = flags.listen;
  listen.insecure = flags.insecure;
  auto server = RpcServer::Start(listen, {&jobs, &workers});
  if (!server.ok()) return Fail(server.status());
  std::unique_ptr<HttpServer> http;
  if (!http_address.empty()) {
    auto started = HttpServer::Start(http_address, flags.insecure, coordinator->get());
    if (!started.ok()) return Fail(started.status());
    http = *std::move(started);
    http->SetReady(true);
    LogInfo("HTTP on ", http->address());
  }
  (*server)->SetServing(true);
  if (const absl::Status status = WritePortFile(flags.port_file, (*server)->address());
      !status.ok()) {
    return Fail(status);
  }
  LogInfo("listening on ", (*server)->address(), ", data in ", options.data_dir);

  while (Signals::Wait(absl::Hours(1)) == 0) {
  }
  LogInfo("shutting down");
  std::thread([] {  // a second signal: at once
    while (Signals::Wait(absl::Hours(1)) == 0) {
    }
    _exit(1);
  })
      .detach();
  (*server)->SetServing(false);
  if (http != nullptr) http->SetReady(false);
  (*coordinator)->BeginShutdown();
  (*server)->Shutdown(kShutdownGrace);
  return 0;
}

}  // namespace

int Main(int argc, char** argv) {
  Signals::Block();
  CLI::App app(
      "Takes quantization jobs, leases their tasks to workers and assembles the artifacts.\n"
      "Example: gradq-coordinator --data-dir /var/lib/gradq --model-root /models "
      "--output-root /artifacts --listen 127.0.0.1:7070");
  ServerFlags flags;
  CoordinatorOptions options;
  std::string http_address;
  AddServerFlags(app, &flags);
  app.add_option("--data-dir", options.data_dir, "Jobs, texts and shards; created when absent")
      ->required()
      ->type_name("DIR");
  app.add_option("--model-root", options.model_root,
                 "Jobs may name models below this folder; without it, none")
      ->type_name("DIR");
  app.add_option(
         "--output-root", options.output_root,
         "Jobs may write artifacts below this folder; without it, only into the data folder")
      ->type_name("DIR");
  AddDurationFlag(app, "--lease-ttl", &options.core.lease_ttl,
                  "A worker that is silent for so long has lost its task");
  AddDurationFlag(app, "--heartbeat", &options.core.heartbeat_interval,
                  "How often a worker reports; at most half of --lease-ttl");
  AddDurationFlag(app, "--retention", &options.core.retention,
                  "How long the shards of a job with mixed widths are kept after its end, so that "
                  "other points of its frontier can be exported");
  app.add_option("--http", http_address, "Serve /healthz, /readyz and /metrics; off when empty")
      ->type_name("HOST:PORT");
  app.final_callback([&options] {
    const absl::Duration heartbeat = options.core.heartbeat_interval;
    if (heartbeat <= absl::ZeroDuration() || 2 * heartbeat > options.core.lease_ttl) {
      throw CLI::ValidationError("--heartbeat", "must be positive and at most half of --lease-ttl");
    }
  });
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv, "coordinator", &flags)) {
    return *code;
  }
  return Serve(flags, options, http_address);
}

}  // namespace gradq

int main(int argc, char** argv) { return gradq::Main(argc, argv); }
