// Runs a libFuzzer target without libFuzzer, which gcc lacks: mutates seeds with a fixed random
// sequence, and, where the code was compiled with -fsanitize-coverage=trace-pc, keeps inputs that
// reach new code.
//
//   fuzz_safetensors [--seconds S] [--iterations N] [--seed K] [FILE...]   files: run these inputs
//   once, to reproduce a finding
//
// A crash, a failed check or an input that runs over 20 s is written to fuzz-finding.bin in the
// current folder.

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "tests/fuzz/seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// --- coverage ---

namespace {
constexpr size_t kEdges = size_t{1} << 16;
uint8_t reached[kEdges];  // by any input
uint8_t touched[kEdges];  // by the current one
uintptr_t previous_pc = 0;
}  // namespace

// Called by gcc's instrumentation at every basic block.
extern "C" __attribute__((no_sanitize_coverage, no_sanitize("address", "undefined"),
                          visibility("default"))) void
__sanitizer_cov_trace_pc() {
  const uintptr_t pc = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                       reinterpret_cast<uintptr_t>(&LLVMFuzzerTestOneInput);
  touched[((pc * 0x9E3779B97F4A7C15u) >> 48 ^ previous_pc) % kEdges] = 1;
  previous_pc = pc >> 1;
}

extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "abort_on_error=1:max_allocation_size_mb=1024:detect_leaks=0";
}
extern "C" __attribute__((visibility("default"))) const char* __ubsan_default_options() {
  return "halt_on_error=1:abort_on_error=1:print_stacktrace=1";
}

namespace {

std::string current;  // the input that runs

void SaveFinding(int signal_number) {
  const int fd = open("fuzz-finding.bin", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0 && write(fd, current.data(), current.size()) >= 0) close(fd);
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

// True when the input reached code no earlier one did.
bool Run(const std::string& input) {
  current = input;
  std::memset(touched, 0, sizeof(touched));
  alarm(20);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(current.data()), current.size());
  alarm(0);
  bool fresh = false;
  for (size_t i = 0; i < kEdges; ++i) {
    if (touched[i] != 0 && reached[i] == 0) {
      reached[i] = 1;
      fresh = true;
    }
  }
  return fresh;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::string Mutated(const std::vector<std::string>& corpus) {
    std::string input = corpus[Below(corpus.size())];
    const size_t rounds = 1 + Below(4);
    for (size_t i = 0; i < rounds; ++i) Mutate(corpus, &input);
    if (input.size() > (size_t{1} << 20)) input.resize(size_t{1} << 20);
    return input;
  }

 private:
  size_t Below(size_t n) { return n == 0 ? 0 : random_() % n; }

  void Mutate(const std::vector<std::string>& corpus, std::string* input) {
    static constexpr uint64_t kNumbers[] = {0,
                                            1,
                                            2,
                                            7,
                                            8,
                                            31,
                                            32,
                                            255,
                                            256,
                                            65535,
                                            0x7fffffff,
                                            0xffffffff,
                                            0x7fffffffffffffff,
                                            0xffffffffffffffff};
    static constexpr const char* kWords[] = {"-1",
                                             "0",
                                             "1",
                                             "9",
                                             "64",
                                             "1e308",
                                             "1.5",
                                             "18446744073709551615",
                                             "4611686018427387904",
                                             "null",
                                             "true",
                                             "{}",
                                             "[]",
                                             "\"\"",
                                             "\"F16\"",
                                             "\"I64\"",
                                             "\"BF16\"",
                                             "\"affine\"",
                                             "\"lut\"",
                                             "[0,0]",
                                             ",",
                                             "\"a\":1,"};
    const size_t at = Below(input->size() + 1);
    switch (Below(10)) {
      case 0:
        if (at < input->size()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << Below(8)));
        break;
      case 1:
        if (at < input->size()) (*input)[at] = static_cast<char>(random_());
        break;
      case 2:
        input->resize(at);
        break;
      case 3:
        input->erase(at, 1 + Below(16));
        break;
      case 4:
        input->insert(at, input->substr(Below(input->size() + 1), 1 + Below(64)));
        break;
      case 5: {
        const uint64_t number = kNumbers[Below(std::size(kNumbers))] + Below(3) - 1;
        const size_t size = size_t{1} << Below(4);
        if (at + size <= input->size()) std::memcpy(input->data() + at, &number, size);
        break;
      }
      case 6:
      case 7:
        ReplaceNumber(at, kWords[Below(std::size(kWords))], input);
        break;
      case 8: {
        const std::string& other = corpus[Below(corpus.size())];
        input->replace(at, 1 + Below(64), other, Below(other.size() + 1), 1 + Below(64));
        break;
      }
      default: {
        // Neighbouring numbers are the interesting wrong ones: sizes off by one, offsets off by a
        // tensor.
        const std::string digits = std::to_string(Below(300));
        ReplaceNumber(at, digits.c_str(), input);
      }
    }
  }

  // The first run of digits at or after `at`.
  static void ReplaceNumber(size_t at, const char* word, std::string* input) {
    const size_t begin = input->find_first_of("0123456789", at);
    if (begin == std::string::npos) return;
    const size_t end = std::min(input->find_first_not_of("0123456789", begin), input->size());
    input->replace(begin, end - begin, word);
  }

  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  double seconds = 0;
  uint64_t iterations = 0, seed = 1;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (flag == "--iterations" && i + 1 < argc) {
      iterations = std::strtoull(argv[++i], nullptr, 10);
    } else if (flag == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      files.push_back(flag);
    }
  }
  for (const int signal_number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM})
    std::signal(signal_number, SaveFinding);
  for (const std::string& file : files) {
    const auto content = gradq::ReadFile(file);
    if (!content.ok()) {
      std::fprintf(stderr, "%s\n", std::string(content.status().message()).c_str());
      return 2;
    }
    Run(*content);
  }
  if (!files.empty()) return 0;

  std::vector<std::string> corpus = gradq::FuzzSeeds();
  for (const std::string& input : corpus) Run(input);
  Mutator mutator(seed);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  uint64_t done = 0;
  while (iterations > 0 ? done < iterations : elapsed() < seconds) {
    const std::string input = mutator.Mutated(corpus);
    if (Run(input) && input.size() < 65536) corpus.push_back(input);
    ++done;
  }
  size_t edges = 0;
  for (const uint8_t edge : reached) edges += edge;
  std::printf("%llu inputs in %.1f s, corpus %zu, edges %zu, no finding\n",
              static_cast<unsigned long long>(done), elapsed(), corpus.size(), edges);
  return 0;
}
