// Tokens per second of one sequence with random weights in the shape of Llama-2-7B, by the decode
// step and graph of lib/inference: packed linears beside dense fp16 in the same run, and where a
// token's time goes. docs/benchmarks.md says how to read it.
//
//   decode_cuda [--bits 2,3,4] [--context 128] [--tokens 64] [--outliers PERCENT] [--json FILE]

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "CLI/CLI.hpp"
#include "tests/bench/decode_flags_cuda.h"

namespace gradq {
namespace {

int Main(int argc, char** argv) {
  DecodeFlags flags;
  CLI::App app(
      "Decodes with random weights in the shape of Llama-2-7B, packed and dense in turns. Needs\n"
      "about 24 GB on the device. Estimated, not measured: two minutes.");
  app.add_option("--bits", flags.bits, "widths beside dense fp16")
      ->delimiter(',')
      ->check(CLI::IsMember({2, 3, 4}))
      ->capture_default_str();
  app.add_option("--context", flags.context, "tokens in the cache")
      ->check(CLI::Range(1, 4000))
      ->capture_default_str();
  app.add_option("--tokens", flags.tokens, "tokens generated per round")
      ->check(CLI::Range(3, 4000))
      ->capture_default_str();
  app.add_option("--outliers", flags.outliers, "percent of the weights kept apart")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  app.add_option("--blocks", flags.blocks, "decoder blocks; 32 is the whole model")
      ->check(CLI::Range(1, 32))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "interleaved runs that medians are taken of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--device", flags.device, "ordinal of the CUDA device")->capture_default_str();
  app.add_option("--json", flags.json, "writes the rows into this file, too");
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<BenchDevice> device = OpenBenchDevice(flags.device);
  if (!device.ok()) {
    std::fprintf(stderr, "decode_cuda: %s\n", std::string(device.status().message()).c_str());
    return 1;
  }
  // Libraries read it when they are loaded; as lib/transformer/numerics.h wants it.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 1);
  // The rest needs libraries that only a machine with a GPU has: not loaded before there is one, so
  // that help and refusals work everywhere.
  void* const library = dlopen("libdecode_cuda_run.so", RTLD_NOW | RTLD_GLOBAL);
  void* const run = library == nullptr ? nullptr : dlsym(library, "GradqRunDecode");
  if (run == nullptr) {
    std::fprintf(stderr, "decode_cuda: cannot load libtorch's CUDA half: %s\n", dlerror());
    return 1;
  }
  return reinterpret_cast<decltype(&GradqRunDecode)>(run)(flags, *device);
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) { return gradq::Main(argc, argv); }
