#pragma once

// What makes products equal bit for bit on any number of threads (design 2, "numbers do not depend
// on the schedule"). Called by every binary and test that links libtorch, before the first tensor.

#include <string>

#include "absl/status/statusor.h"

namespace gradq {

// First thing in main: libgomp and MKL read these when they are loaded, so a process started
// without them sets them and executes itself again (once). Returns when nothing is to be done.
void EnsureNumericsEnvironment(char** argv);

// Sets ATen's thread counts and deterministic settings (TF32 off, sums in fp32) and checks on
// non-Intel machines that 1-thread and n-thread products are equal. The result is the numerics
// class: build, BLAS and mode, SIMD target, device kind
// ("torch-2.11.0/mkl-avx512-strict/avx3/cpu").
absl::StatusOr<std::string> SetUpNumerics(int threads, const std::string& device);

}  // namespace gradq
