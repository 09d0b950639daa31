#include "lib/transformer/numerics.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/mm_ops.h>
#include <cpuid.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "lib/base/logging.h"
#include "lib/base/strings.h"
#include "lib/kernels/simd_target.h"

namespace gradq {
namespace {

constexpr const char* kExecuted = "GRADQ_NUMERICS_EXECUTED";

bool IsIntel() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return false;
  char vendor[13] = {};
  std::memcpy(vendor, &ebx, 4);
  std::memcpy(vendor + 4, &edx, 4);
  std::memcpy(vendor + 8, &ecx, 4);
  return std::strcmp(vendor, "GenuineIntel") == 0;
}

const char* ProductMode() {
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx512 ? "AVX512,STRICT" : "AVX2,STRICT";
}

bool SetVariable(const char* name, const char* value) {
  const char* now = std::getenv(name);
  if (now != nullptr && std::strcmp(now, value) == 0) return false;
  setenv(name, value, 1);
  return true;
}

// A reproducible matrix: no generator of libtorch, whose stream is not ours to promise.
at::Tensor Filled(int64_t rows, int64_t columns, uint32_t seed) {
  at::Tensor tensor = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow({rows, columns}),
                                                          at::kFloat, {}, at::kCPU, {}, {});
  float* data = tensor.mutable_data_ptr<float>();
  uint32_t state = seed;
  for (int64_t i = 0; i < rows * columns; ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return tensor;
}

// The shapes of linears forward and backward in which threads cut rows, columns or the inner
// dimension.
bool ProductsDependOnThreads(int threads) {
  for (const auto& [m, k, n] :
       {std::array<int64_t, 3>{509, 257, 176}, {176, 2048, 256}, {64, 688, 2048}}) {
    const at::Tensor a = Filled(m, k, 1), b = Filled(k, n, 2);
    at::set_num_threads(1);
    const at::Tensor one = at::_ops::mm::call(a, b);
    at::set_num_threads(threads);
    const at::Tensor many = at::_ops::mm::call(a, b);
    if (std::memcmp(one.const_data_ptr(), many.const_data_ptr(), one.nbytes()) != 0) return true;
  }
  return false;
}

}  // namespace

void EnsureNumericsEnvironment(char** argv) {
  bool changed = SetVariable("MKL_CBWR", ProductMode());
  changed |= SetVariable("OMP_WAIT_POLICY", "passive");
  changed |= SetVariable("CUBLAS_WORKSPACE_CONFIG", ":4096:8");
  if (!changed || std::getenv(kExecuted) != nullptr) return;
  setenv(kExecuted, "1", 1);
  execv("/proc/self/exe", argv);
  // Without /proc the variables reach MKL (read at the first product) but not libgomp: slower, not
  // wrong.
  LogWarning("cannot execute /proc/self/exe again, OMP_WAIT_POLICY has no effect: ",
             std::strerror(errno));
}

absl::StatusOr<std::string> SetUpNumerics(int threads, const std::string& device) {
  if (threads < 1) {
    return absl::InvalidArgumentError(StrCat("number of threads must be at least 1: ", threads));
  }
  at::set_num_threads(threads);
  at::globalContext().setAllowTF32CuBLAS(false);
  // cuBLAS may else join the parts of a sum it has split in fp16 or bf16.
  at::globalContext().setAllowFP16ReductionCuBLAS(false);
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  const char* mode = std::getenv("MKL_CBWR");
  std::string products = StrCat("mkl-", mode == nullptr ? "unset" : mode);
  // Measured equal on Intel; elsewhere MKL makes no promise, so ask it.
  if (threads > 1 && (!IsIntel() || mode == nullptr) && ProductsDependOnThreads(threads)) {
    // Of the compute pool's kernels none is affected: their tiles are fixed by shape.
    at::set_num_threads(1);
    products += "-single";
    LogWarning("libtorch's products depend on the number of threads here: it runs on one");
  }
  const std::string kind = device.substr(0, device.find(':'));
  return StrCat("torch-", TORCH_VERSION, "/", products, "/", kernels::SimdTargetName(), "/", kind);
}

}  // namespace gradq
