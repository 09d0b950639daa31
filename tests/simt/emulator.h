#pragma once

// A CUDA grid on the CPU, one block after the other, for kernel bodies that are templates over the
// machine of lib/kernels/cuda/simt.cuh: the same source that nvcc compiles. Every thread of a block
// is a fiber. Between two barriers warps and lanes run in an order that `seed` chooses, each as far
// as it gets, so that a missing Sync shows as a wrong or NaN result under some seed:
//
//   for (const uint32_t seed : kEmulatorSeeds) {
//     ASSERT_EQ(RunGrid({.grid_x = 2, .threads = 256, .shared_bytes = 4096}, seed,
//                       [&](const EmulatedSimt& s) { SomeKernel(s, arguments); }),
//                       absl::OkStatus());
//   }
//
// Dynamic shared memory starts as 0xFF bytes (NaN in every float type). A copy of CopyAsync turns
// its target into 0xFF at once and lands in the WaitCopies that covers it. What is no error on a
// GPU at once is one here: see RunGrid. Not seen: a race of lanes of one warp that a warp call
// between them happens to order, and plain accesses outside of buffers (build with ASan for those).
//
// Deterministic for a seed. One RunGrid at a time per thread; any number of threads.

#include <cmath>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "lib/kernels/cuda/tile_layout.h"
#include "tests/simt/instructions.h"

namespace gradq::kernels {

struct GridShape {
  int64_t grid_x = 1;
  int64_t grid_y = 1;
  int threads = 32;      // of a block: a multiple of 32, at most 1024
  int shared_bytes = 0;  // dynamic shared memory, at most 227 KiB
};

// 0: threads in ascending order, 1: descending, both to the next barrier; above, shuffled: even
// ones run a warp to the next barrier, odd ones change the warp after every warp call.
inline constexpr uint32_t kEmulatorSeeds[] = {0, 1, 2, 3};

class EmulatedBlock;

// The machine `S` of one thread.
class EmulatedSimt {
 public:
  EmulatedSimt(EmulatedBlock* block, int thread) : block_(block), thread_(thread) {}

  int thread() const { return thread_; }
  int threads() const;
  int64_t block_x() const;
  int64_t block_y() const;
  char* shared() const;
  void Sync() const;
  void SyncWarp() const;
  float ShuffleXor(float value, int mask) const;
  void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const;
  static uint32_t Prmt(uint32_t low, uint32_t high, uint32_t selector) {
    return PermuteBytes(low, high, selector);
  }
  Words4 LoadStreaming(const Words4* from) const;
  Words4 Load(const Words4* from) const;
  void CopyAsync(void* shared, const void* from, bool valid) const;
  void CommitCopies() const;
  template <int kPending>
  void WaitCopies() const {
    static_assert(kPending >= 0);
    WaitForCopies(kPending);
  }
  static uint32_t PackHalf2(float low, float high) {
    return RoundToHalf(low) | static_cast<uint32_t>(RoundToHalf(high)) << 16;
  }
  static float HalfToFloat(uint16_t bits) { return HalfValue(bits); }
  static uint16_t FloatToHalf(float value) { return RoundToHalf(value); }
  static uint32_t SubHalf2(uint32_t a, uint32_t b) { return SubtractHalves(a, b); }
  static uint32_t MulHalf2(uint32_t a, uint32_t b) { return MultiplyHalves(a, b); }
  static float Exp(float x) { return std::exp(x); }
  static float ReciprocalSqrt(float x) { return 1.f / std::sqrt(x); }

 private:
  void WaitForCopies(int pending) const;

  EmulatedBlock* block_;
  int thread_;
};

// Runs `body` once per thread of the grid; it must not throw. INTERNAL, naming block and thread,
// for a vector or copy that is not 16-byte aligned, in the wrong memory or beyond the shared
// memory; threads that return or wait in a warp call while others wait in Sync; a warp call that
// not all 32 lanes reach; two different calls met in one warp; a write beyond shared memory.
// INVALID_ARGUMENT for a shape that no device takes. The blocks behind an error are not run.
[[nodiscard]] absl::Status RunGrid(const GridShape& shape, uint32_t seed,
                                   absl::FunctionRef<void(const EmulatedSimt&)> body);

}  // namespace gradq::kernels
