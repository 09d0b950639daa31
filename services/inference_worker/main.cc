// gradq-inference: serves Score, Compare and Generate, and validates a coordinator's artifacts.

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/transformer/numerics.h"
#include "services/inference_worker/compute_thread.h"
#include "services/inference_worker/inference_service.h"
#include "services/inference_worker/model_root.h"
#include "services/inference_worker/validate_runner.h"
#include "services/rpc/address.h"
#include "services/rpc/channel.h"
#include "services/rpc/flags.h"
#include "services/rpc/port_file.h"
#include "services/rpc/server.h"
#include "services/rpc/signals.h"
#include "services/worker/machine.h"
#include "services/worker/session.h"

namespace gradq {
namespace {

struct InferenceFlags {
  ServerFlags server;
  std::string coordinator;
  std::string name = DefaultWorkerName();
  std::string device = "cpu";
  std::string compute_dtype;
  std::string model_root;
  size_t max_models = 2;
  absl::Duration connect_timeout = absl::Seconds(60);
  absl::Duration drain_grace = absl::Seconds(20);
};

void AddInferenceFlags(CLI::App& app, InferenceFlags* flags) {
  AddServerFlags(app, &flags->server);
  app.add_option("--coordinator", flags->coordinator,
                 "Coordinator whose artifacts are validated; without it only clients are served")
      ->type_name("HOST:PORT");
  app.add_option("--name", flags->name, "Stable name of this worker (letters, digits, - _ .)");
  app.add_option("--device", flags->device,
                 "Where models run: cpu, or cuda:N (compute capability 8.0 and up) with weights "
                 "uploaded packed")
      ->capture_default_str();
  app.add_option(
         "--compute-dtype", flags->compute_dtype,
         "Of activations, on CUDA: bfloat16 (default) or float16, which is more precise but "
         "overflows beyond 65504; on the CPU float32")
      ->type_name("DTYPE");
  app.add_option("--model-root", flags->model_root,
                 "Clients may name models below this folder; on loopback default: all")
      ->type_name("DIR");
  app.add_option("--max-models", flags->max_models, "Models kept loaded, at least 2")
      ->check(CLI::Range(2, 1024));
  AddDurationFlag(app, "--connect-timeout", &flags->connect_timeout,
                  "How long the coordinator may be unreachable at first");
  AddDurationFlag(app, "--drain-grace", &flags->drain_grace,
                  "How long running calls and tasks may go on after SIGTERM");
}

absl::StatusOr<ModelRoot> OpenModelRoot(const InferenceFlags& flags) {
  if (!flags.model_root.empty()) return ModelRoot::Open(flags.model_root);
  GRADQ_ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(flags.server.listen));
  if (!IsLoopback(address.host)) {
    return absl::InvalidArgumentError(
        StrCat("--model-root is needed to listen beyond loopback: ", flags.server.listen));
  }
  return ModelRoot::Open("/");
}

absl::StatusOr<std::unique_ptr<Session>> OpenSession(const InferenceFlags& flags,
                                                     const ComputeThread& compute,
                                                     LeaseHandler* handler) {
  SessionOptions options;
  options.coordinator = flags.coordinator;
  options.insecure = flags.server.insecure;
  options.connect_timeout = flags.connect_timeout;
  options.drain_grace = flags.drain_grace;
  v1::RegisterWorkerRequest& about = options.registration;
  about.set_name(flags.name);
  about.set_kind(v1::Worker::INFERENCE);
  about.set_device(flags.device);
  about.set_threads(flags.server.threads);
  about.set_memory_bytes(MachineMemoryBytes() / 5 * 4);
  about.set_numerics_class(compute.numerics_class());
  return Session::Open(std::move(options), handler);
}

absl::Status Serve(const InferenceFlags& flags) {
  GRADQ_ASSIGN_OR_RETURN(ModelRoot root, OpenModelRoot(flags));
  GRADQ_ASSIGN_OR_RETURN(const ComputeType type,
                         ParseComputeType(flags.compute_dtype, flags.device));
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ComputeThread> compute,
                         ComputeThread::Start(flags.server.threads, flags.device, type));
  InferenceService service(std::move(root), flags.max_models, compute.get());
  GRADQ_ASSIGN_OR_RETURN(
      const std::unique_ptr<RpcServer> server,
      RpcServer::Start({.address = flags.server.listen, .insecure = flags.server.insecure},
                       {&service}));

  std::unique_ptr<ValidateRunner> runner;
  std::unique_ptr<Session> session;
  std::thread tasks;
  std::atomic<bool> tasks_ended = false;
  absl::Status ended;
  if (!flags.coordinator.empty()) {
    GRADQ_ASSIGN_OR_RETURN(
        auto jobs, Dial(flags.coordinator, {.insecure = flags.server.insecure, .bulk = true}));
    runner = std::make_unique<ValidateRunner>(std::move(jobs), compute.get());
    GRADQ_ASSIGN_OR_RETURN(session, OpenSession(flags, *compute, runner.get()));
    runner->Attach(session.get());
  }
  GRADQ_RETURN_IF_ERROR(WritePortFile(flags.server.port_file, server->address()));
  server->SetServing(true);
  LogInfo("listening: ", server->address(), ", numerics ", compute->numerics_class(), ", threads ",
          flags.server.threads);
  if (session != nullptr) {
    tasks = std::thread([&] {
      ended = session->Run();
      tasks_ended = true;
    });
  }

  // The loop also ends when the coordinator drains this worker or could not be reached.
  while (!tasks_ended && Signals::Wait(absl::Milliseconds(100)) == 0) {
  }
  LogInfo("shutting down");
  server->SetServing(false);
  std::thread impatience([&] {
    while (!tasks_ended) {
      if (Signals::Wait(absl::Milliseconds(100)) != 0) _exit(1);  // the second signal: at once
    }
  });
  if (session != nullptr) session->Drain();
  service.Drain(flags.drain_grace);
  // Calls have ended; idle clients are not waited for.
  server->Shutdown(absl::Milliseconds(100));
  if (tasks.joinable()) tasks.join();
  tasks_ended = true;
  impatience.join();
  return ended;
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  gradq::Signals::Block();
  CLI::App app(
      "gradq-inference: runs dense and quantized models: perplexity, comparison, generation, and "
      "the "
      "validation of a coordinator's artifacts.\n\nExamples:\n"
      "  gradq-inference --listen 127.0.0.1:7500 --model-root /models\n"
      "  gradq-inference --listen 127.0.0.1:7500 --device cuda:0\n"
      "  gradq-inference --coordinator 127.0.0.1:7400 --name i1 --threads 8");
  gradq::InferenceFlags flags;
  gradq::AddInferenceFlags(app, &flags);
  if (const auto code = gradq::ParseCommandLine(app, argc, argv, "inference", &flags.server)) {
    return *code;
  }
  const absl::Status status = gradq::Serve(flags);
  if (!status.ok()) gradq::LogError("inference worker ends: ", status.message());
  // Static destructors of libtorch's libraries race with its threads.
  fflush(nullptr);
  _exit(status.ok() ? 0 : 1);
}
