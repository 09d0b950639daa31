#pragma once

// What a kernel body may use of the machine it runs on. Bodies are templates over a machine `S`:
// DeviceSimt (simt_device.cuh) under nvcc, and an emulator of one block in tests/simt, which runs
// the same source on the CPU: threads in a shuffled order between barriers, copies that land late,
// misaligned vectors and diverging barriers reported. So nothing here may include a CUDA header.
//
// S has, all static or const, all called by every thread of the block or warp where marked so:
//   int thread() const, int threads() const         within the block (one dimension)
//   int64_t block_x() const, block_y() const        of the grid
//   char* shared() const                            the block's dynamic shared memory, 16-aligned
//   void Sync() const                               __syncthreads [block]
//   void SyncWarp() const                           __syncwarp [warp]
//   float ShuffleXor(float value, int mask) const   from lane ^ mask, all 32 lanes [warp]
//   void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const
//        mma.m16n8k16 row.col, fp16 operands, fp32 sums, c += a · b [warp]
//   uint32_t Prmt(uint32_t low, uint32_t high, uint32_t selector) const    PTX prmt.b32
//   Words4 LoadStreaming(const Words4* from) const  read once: ld.global.cs
//   Words4 Load(const Words4* from) const           ld of 16 bytes, global or shared
//   void CopyAsync(void* shared, const void* from, bool valid) const
//        16 bytes global -> shared, zeros when !valid (`from` is not read then); visible to this
//        thread after WaitCopies, to others after a Sync behind it. cp.async
//   void CommitCopies() const, template <int kPending> void WaitCopies() const
//        cp.async.commit_group; wait until at most kPending committed groups are under way
//   uint32_t PackHalf2(float low, float high) const     round to nearest even, inf from 65520 on
//   float HalfToFloat(uint16_t) const, uint16_t FloatToHalf(float) const
//   uint32_t SubHalf2(uint32_t a, uint32_t b) const, uint32_t MulHalf2(uint32_t a, uint32_t b)
//   const float Exp(float) const, float ReciprocalSqrt(float) const    1 / sqrt, correctly rounded
//   parts
// Control flow around calls marked [block] or [warp] must be uniform there.

#include <cstdint>

#include "lib/kernels/cuda/tile_layout.h"

#if defined(__CUDACC__)
#define GRADQ_DEVICE __device__ __forceinline__
#define GRADQ_UNROLL _Pragma("unroll")
#define GRADQ_KEEP_LOOP _Pragma("unroll 1")
#else
#define GRADQ_DEVICE inline
#define GRADQ_UNROLL
#define GRADQ_KEEP_LOOP
#endif

namespace gradq::kernels {

// The bits of a float, and back.
GRADQ_DEVICE uint32_t FloatBits(float value) {
  uint32_t bits;
  static_assert(sizeof bits == sizeof value);
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
GRADQ_DEVICE float FloatOf(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Elements of activations: how a kernel reads and writes T in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class S>
GRADQ_DEVICE float ToFloat(const S&, float value) {
  return value;
}
template <class S>
GRADQ_DEVICE float ToFloat(const S& s, Half value) {
  return s.HalfToFloat(value.bits);
}
template <class S>
GRADQ_DEVICE float ToFloat(const S&, BFloat16 value) {
  return FloatOf(static_cast<uint32_t>(value.bits) << 16);
}

template <class S>
GRADQ_DEVICE void Store(const S&, float* to, float value) {
  *to = value;
}
template <class S>
GRADQ_DEVICE void Store(const S& s, Half* to, float value) {
  to->bits = s.FloatToHalf(value);
}
// To nearest even; NaN stays NaN.
template <class S>
GRADQ_DEVICE void Store(const S&, BFloat16* to, float value) {
  const uint32_t bits = FloatBits(value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to->bits = static_cast<uint16_t>((nan ? bits | 0x400000 : rounded) >> 16);
}

}  // namespace gradq::kernels
