#pragma once

// The machine of simt.cuh on a GPU of compute capability 8.0 or later. Only for .cu files.

#include <cuda_fp16.h>

#include <cstdint>

#include "lib/kernels/cuda/simt.cuh"

namespace gradq::kernels {

class DeviceSimt {
 public:
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ __forceinline__ int64_t block_x() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t block_y() const { return blockIdx.y; }
  __device__ __forceinline__ char* shared() const {
    extern __shared__ __align__(16) char gradq_shared[];
    return gradq_shared;
  }
  __device__ __forceinline__ void Sync() const { __syncthreads(); }
  __device__ __forceinline__ void SyncWarp() const { __syncwarp(); }
  __device__ __forceinline__ float ShuffleXor(float value, int mask) const {
    return __shfl_xor_sync(0xffffffff, value, mask);
  }
  __device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  __device__ __forceinline__ uint32_t Prmt(uint32_t low, uint32_t high, uint32_t selector) const {
    // __byte_perm clears the nibbles' top bits first.
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
    return bytes;
  }
  __device__ __forceinline__ Words4 LoadStreaming(const Words4* from) const {
    Words4 v;
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(from));
    return v;
  }
  __device__ __forceinline__ Words4 Load(const Words4* from) const {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    return {{v.x, v.y, v.z, v.w}};
  }
  __device__ __forceinline__ void CopyAsync(void* shared, const void* from, bool valid) const {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;  // the rest of the 16 is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  }
  __device__ __forceinline__ void CommitCopies() const {
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  template <int kPending>
  __device__ __forceinline__ void WaitCopies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  }
  __device__ __forceinline__ uint32_t PackHalf2(float low, float high) const {
    return Bits(__floats2half2_rn(low, high));
  }
  __device__ __forceinline__ float HalfToFloat(uint16_t bits) const {
    return __half2float(__ushort_as_half(bits));
  }
  __device__ __forceinline__ uint16_t FloatToHalf(float value) const {
    return __half_as_ushort(__float2half_rn(value));
  }
  __device__ __forceinline__ uint32_t SubHalf2(uint32_t a, uint32_t b) const {
    return Bits(__hsub2_rn(Pair(a), Pair(b)));
  }
  __device__ __forceinline__ uint32_t MulHalf2(uint32_t a, uint32_t b) const {
    return Bits(__hmul2_rn(Pair(a), Pair(b)));
  }
  __device__ __forceinline__ float Exp(float x) const { return expf(x); }
  __device__ __forceinline__ float ReciprocalSqrt(float x) const {
    return __fdiv_rn(1.f, __fsqrt_rn(x));
  }

 private:
  static __device__ __forceinline__ uint32_t Bits(__half2 pair) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
  }
  static __device__ __forceinline__ __half2 Pair(uint32_t bits) {
    __half2 pair;
    memcpy(&pair, &bits, sizeof pair);
    return pair;
  }
};

}  // namespace gradq::kernels
