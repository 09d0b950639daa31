// gradq-worker: leases tasks from a coordinator, computes, and serves its streams to other workers.

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "lib/base/files.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/pipeline/chunk_store.h"
#include "lib/pipeline/stage_runner.h"
#include "lib/transformer/numerics.h"
#include "services/rpc/address.h"
#include "services/rpc/flags.h"
#include "services/rpc/port_file.h"
#include "services/rpc/server.h"
#include "services/rpc/signals.h"
#include "services/worker/chunk_service.h"
#include "services/worker/machine.h"
#include "services/worker/session.h"
#include "services/worker/task_runner.h"

namespace gradq {
namespace {

struct WorkerFlags {
  ServerFlags server;
  std::string coordinator;
  std::string name = DefaultWorkerName();
  std::string advertise;
  std::string device = "cpu";
  std::string spool_dir = DefaultSpoolFolder();
  int64_t spool_limit = 0;
  int64_t stream_memory = 0;
  int64_t memory = 0;
  absl::Duration connect_timeout = absl::Seconds(60);
  absl::Duration drain_grace = absl::Seconds(20);
};

void AddWorkerFlags(CLI::App& app, WorkerFlags* flags) {
  AddServerFlags(app, &flags->server);
  app.add_option("--coordinator", flags->coordinator, "Address of the coordinator")
      ->type_name("HOST:PORT")
      ->required();
  app.add_option("--name", flags->name, "Stable name of this worker (letters, digits, - _ .)");
  app.add_option("--advertise", flags->advertise,
                 "Address at which other workers reach this one; default: where it listens")
      ->type_name("HOST:PORT");
  app.add_option("--device", flags->device, "cpu or cuda:N");
  app.add_option("--spool-dir", flags->spool_dir, "Folder for streams that memory cannot hold");
  const auto size = [&](const std::string& name, int64_t* value, const std::string& help) {
    app.add_option(name, *value, help)->transform(CLI::AsSizeValue(false))->type_name("BYTES");
  };
  size("--spool-limit", &flags->spool_limit,
       "Bytes of spool files; 0: half of the folder's free disk");
  size("--stream-memory", &flags->stream_memory,
       "Bytes of streams and statistics kept in memory; 0: a quarter of --memory");
  size("--memory", &flags->memory,
       "Bytes this worker may use, for the plan; 0: four fifths of the machine's");
  AddDurationFlag(app, "--connect-timeout", &flags->connect_timeout,
                  "How long the coordinator may be unreachable at first");
  AddDurationFlag(app, "--drain-grace", &flags->drain_grace,
                  "How long a running solve may go on after SIGTERM");
}

absl::Status ResolveSizes(WorkerFlags* flags) {
  if (flags->memory == 0) flags->memory = MachineMemoryBytes() / 5 * 4;
  if (flags->stream_memory == 0) flags->stream_memory = flags->memory / 4;
  if (flags->spool_limit == 0 && !flags->spool_dir.empty()) {
    GRADQ_RETURN_IF_ERROR(MakeFolders(flags->spool_dir));
    GRADQ_ASSIGN_OR_RETURN(const int64_t free, FreeDiskBytes(flags->spool_dir));
    flags->spool_limit = free / 2;
  }
  return absl::OkStatus();
}

absl::Status RunWorker(WorkerFlags flags) {
  GRADQ_RETURN_IF_ERROR(ResolveSizes(&flags));
  GRADQ_RETURN_IF_ERROR(CheckDevice(flags.device));
  // This thread is the compute thread: libtorch's thread counts are set per thread.
  GRADQ_ASSIGN_OR_RETURN(const std::string numerics,
                         SetUpNumerics(flags.server.threads, flags.device));
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ChunkStore> store,
                         ChunkStore::Open({.memory_limit = flags.stream_memory,
                                           .spool_dir = flags.spool_dir,
                                           .spool_limit = flags.spool_limit}));
  ChunkService service(store.get());
  GRADQ_ASSIGN_OR_RETURN(
      std::unique_ptr<RpcServer> server,
      RpcServer::Start({.address = flags.server.listen, .insecure = flags.server.insecure},
                       {&service}));
  ThreadPool pool(flags.server.threads);
  TaskRunner runner(
      {.device = flags.device, .insecure = flags.server.insecure, .memory_bytes = flags.memory},
      store.get(), &service, &pool);

  if (flags.advertise.empty()) {
    GRADQ_ASSIGN_OR_RETURN(const HostPort listening, ParseHostPort(server->address()));
    if (listening.host == "0.0.0.0" || listening.host == "::") {
      return absl::InvalidArgumentError(
          StrCat("--listen names no host that others could reach, --advertise is needed: ",
                 server->address()));
    }
    flags.advertise = server->address();
  }

  SessionOptions options;
  options.coordinator = flags.coordinator;
  options.insecure = flags.server.insecure;
  options.connect_timeout = flags.connect_timeout;
  options.drain_grace = flags.drain_grace;
  v1::RegisterWorkerRequest& about = options.registration;
  about.set_name(flags.name);
  about.set_kind(v1::Worker::COMPUTE);
  about.set_advertise(flags.advertise);
  about.set_device(flags.device);
  about.set_threads(flags.server.threads);
  about.set_memory_bytes(flags.memory);
  about.set_numerics_class(numerics);
  about.set_stream_memory_bytes(flags.stream_memory);
  about.set_spool_limit_bytes(flags.spool_limit);
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<Session> session,
                         Session::Open(std::move(options), &runner));
  runner.Attach(session.get());
  GRADQ_RETURN_IF_ERROR(WritePortFile(flags.server.port_file, server->address()));
  LogInfo("listening: ", server->address(), ", numerics ", numerics, ", threads ",
          flags.server.threads);

  std::atomic<bool> ended = false;
  std::thread signals([&] {
    bool asked = false;
    while (!ended) {
      if (Signals::Wait(absl::Milliseconds(100)) == 0) continue;
      if (asked) _exit(1);  // the second signal: at once
      asked = true;
      session->Drain();
    }
  });
  absl::Status status = session->Run();
  server->SetServing(false);
  store->Shutdown();
  server->Shutdown(absl::Seconds(1));
  ended = true;
  signals.join();
  return status;
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  gradq::Signals::Block();
  CLI::App app(
      "gradq-worker: computes for a gradq coordinator.\n\nExample:\n"
      "  gradq-worker --coordinator 127.0.0.1:7400 --name w1 --threads 8");
  gradq::WorkerFlags flags;
  gradq::AddWorkerFlags(app, &flags);
  if (const auto code = gradq::ParseCommandLine(app, argc, argv, "worker", &flags.server)) {
    return *code;
  }
  const absl::Status status = gradq::RunWorker(flags);
  if (!status.ok()) gradq::LogError("worker ends: ", status.message());
  // Static destructors of libtorch's libraries race with its threads.
  fflush(nullptr);
  _exit(status.ok() ? 0 : 1);
}
