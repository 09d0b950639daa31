#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "gradq/v1/inference_service.grpc.pb.h"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/cli/commands.h"
#include "services/cli/local_cluster.h"
#include "services/cli/report.h"
#include "services/rpc/channel.h"
#include "services/rpc/signals.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

// A model of any size on any machine: what ends a call that takes too long is the user.
constexpr absl::Duration kComputeTimeout = absl::Hours(24);

struct InferenceFlags {
  std::string server;
  bool insecure = false;
  int threads = 0;
  std::string device = "cpu";
  std::string model;
  std::string reference;
  std::string text;
  int length = 512;
  int max_sequences = 0;
  bool json = false;
  std::string prompt;
  int max_tokens = 128;
  double temperature = 0;
  double top_p = 1;
  uint64_t seed = 0;
};

// An inference server and a stub on it; the child, if one was started, lives as long as this.
struct InferenceClient {
  InferenceConnection connection;
  std::unique_ptr<v1::InferenceService::Stub> stub;
};

absl::StatusOr<InferenceClient> Connect(const InferenceFlags& flags) {
  GRADQ_ASSIGN_OR_RETURN(InferenceConnection connection,
                         InferenceConnection::Open(flags.server, flags.threads, flags.device));
  const std::string address = connection.address();
  GRADQ_ASSIGN_OR_RETURN(const auto channel, Dial(address, {.insecure = flags.insecure}));
  GRADQ_RETURN_IF_ERROR(WaitConnected(*channel, address, absl::Seconds(30)));
  return InferenceClient{std::move(connection), v1::InferenceService::NewStub(channel)};
}

// A child sees our files under absolute paths; a server's paths are its own.
absl::StatusOr<std::string> ModelPath(const InferenceFlags& flags, const std::string& path) {
  if (!flags.server.empty()) return path;
  GRADQ_RETURN_IF_ERROR(OpenLocalFolder(path).status());
  return std::filesystem::absolute(path).lexically_normal().string();
}

absl::Status RunEval(const InferenceFlags& flags) {
  v1::ScoreRequest request;
  GRADQ_ASSIGN_OR_RETURN(*request.mutable_model(), ModelPath(flags, flags.model));
  GRADQ_ASSIGN_OR_RETURN(*request.mutable_text(), ReadFile(flags.text));
  request.set_length(flags.length);
  request.set_max_sequences(flags.max_sequences);
  GRADQ_ASSIGN_OR_RETURN(const InferenceClient client, Connect(flags));
  grpc::ClientContext context;
  SetDeadline(context, kComputeTimeout);
  v1::ScoreResponse response;
  GRADQ_RETURN_IF_ERROR(FromGrpc(client.stub->Score(&context, request, &response)));
  if (flags.json) {
    const nlohmann::ordered_json json = {{"perplexity", response.perplexity()},
                                         {"tokens", response.tokens()},
                                         {"seconds", response.seconds()}};
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("perplexity %.6f over %lld tokens in %.2f s\n", response.perplexity(),
                static_cast<long long>(response.tokens()), response.seconds());
  }
  return absl::OkStatus();
}

absl::Status RunCompare(const InferenceFlags& flags) {
  v1::CompareRequest request;
  GRADQ_ASSIGN_OR_RETURN(*request.mutable_model(), ModelPath(flags, flags.model));
  GRADQ_ASSIGN_OR_RETURN(*request.mutable_reference(), ModelPath(flags, flags.reference));
  GRADQ_ASSIGN_OR_RETURN(*request.mutable_text(), ReadFile(flags.text));
  request.set_length(flags.length);
  request.set_max_sequences(flags.max_sequences);
  GRADQ_ASSIGN_OR_RETURN(const InferenceClient client, Connect(flags));
  grpc::ClientContext context;
  SetDeadline(context, kComputeTimeout);
  v1::CompareResponse response;
  GRADQ_RETURN_IF_ERROR(FromGrpc(client.stub->Compare(&context, request, &response)));
  const v1::Comparison& comparison = response.comparison();
  if (flags.json) {
    std::printf("%s\n", ComparisonJson(comparison).c_str());
  } else {
    std::printf(
        "perplexity            %.6f\nreference perplexity  %.6f\nKL divergence         %.6f nats "
        "per token\n",
        comparison.perplexity(), comparison.reference_perplexity(), comparison.kl());
    std::printf("top-1 agreement       %.3f %%\ntokens                %lld in %.2f s\n",
                100 * comparison.top1_agreement(), static_cast<long long>(comparison.tokens()),
                comparison.seconds());
  }
  return absl::OkStatus();
}

absl::Status RunGenerate(const InferenceFlags& flags) {
  v1::GenerateRequest request;
  GRADQ_ASSIGN_OR_RETURN(*request.mutable_model(), ModelPath(flags, flags.model));
  request.set_prompt(flags.prompt);
  request.set_max_tokens(flags.max_tokens);
  request.set_temperature(flags.temperature);
  request.set_top_p(flags.top_p);
  request.set_seed(flags.seed);
  GRADQ_ASSIGN_OR_RETURN(const InferenceClient client, Connect(flags));
  grpc::ClientContext context;
  SetDeadline(context, kComputeTimeout);
  const auto reader = client.stub->Generate(&context, request);
  v1::GenerateResponse response;
  bool interrupted = false;
  while (reader->Read(&response)) {
    std::fwrite(response.text().data(), 1, response.text().size(), stdout);
    std::fflush(stdout);
    if (!interrupted && Signals::Wait(absl::ZeroDuration()) != 0) {
      interrupted = true;
      context.TryCancel();
    }
  }
  std::printf("\n");
  return FromGrpc(reader->Finish());
}

void AddServerFlags(CLI::App& command, InferenceFlags& flags) {
  command
      .add_option("--server", flags.server, "A running gradq-inference (default: a child process)")
      ->type_name("HOST:PORT");
  command.add_flag("--insecure", flags.insecure, "Allow plaintext beyond loopback");
  command.add_option("--threads", flags.threads, "Threads of the child, 0 for all cores")
      ->check(CLI::Range(0, 4096));
  command.add_option("--device", flags.device, "Device of the child: cpu or cuda:N")
      ->capture_default_str();
}

void AddTextFlags(CLI::App& command, InferenceFlags& flags) {
  command.add_option("--text", flags.text, "UTF-8 text")->required()->type_name("FILE");
  command.add_option("--length", flags.length, "Tokens per window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command.add_option("--max-sequences", flags.max_sequences, "Windows, 0 for all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag("--json", flags.json, "Print one JSON object");
}

}  // namespace

void AddInferenceCommands(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<InferenceFlags>();

  CLI::App* eval = app.add_subcommand("eval", "Perplexity of a dense or quantized model on a text");
  eval->footer(
      "Example:\n  gradq eval --model llama-3bit --text valid.txt --length 512 --max-sequences 96");
  eval->add_option("--model", flags->model, "Model folder")->required()->type_name("DIR");
  AddTextFlags(*eval, *flags);
  AddServerFlags(*eval, *flags);
  eval->callback([flags, &chosen] { chosen = [flags] { return RunEval(*flags); }; });

  CLI::App* compare = app.add_subcommand(
      "compare", "Quantized against original: KL, top-1 agreement, perplexities");
  compare->footer(
      "Example:\n  gradq compare --model llama-3bit --reference llama --text valid.txt");
  compare->add_option("--model", flags->model, "Quantized folder")->required()->type_name("DIR");
  compare->add_option("--reference", flags->reference, "Original folder")
      ->required()
      ->type_name("DIR");
  AddTextFlags(*compare, *flags);
  AddServerFlags(*compare, *flags);
  compare->callback([flags, &chosen] { chosen = [flags] { return RunCompare(*flags); }; });

  CLI::App* generate = app.add_subcommand("generate", "Continue a prompt");
  generate->footer(
      "Examples:\n"
      "  gradq generate --model llama-3bit --prompt \"The planner\"\n"
      "  gradq generate --model llama-3bit --prompt \"The planner\" --temperature 0.8 --top-p 0.95 "
      "--seed 1");
  generate->add_option("--model", flags->model, "Model folder")->required()->type_name("DIR");
  generate->add_option("--prompt", flags->prompt, "Text to continue")->required();
  generate->add_option("--max-tokens", flags->max_tokens, "Tokens to sample at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  generate->add_option("--temperature", flags->temperature, "0 for greedy")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  generate->add_option("--top-p", flags->top_p, "Nucleus mass")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  generate->add_option("--seed", flags->seed, "Seed of the sampler")->capture_default_str();
  AddServerFlags(*generate, *flags);
  generate->callback([flags, &chosen] { chosen = [flags] { return RunGenerate(*flags); }; });
}

}  // namespace gradq
