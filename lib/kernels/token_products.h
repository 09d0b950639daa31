#pragma once

// Sums over tokens of products of activations and gradients: the arithmetic of lib/statistics on
// the CPU. One compute thread calls; tiles and the order of every sum depend on shapes alone, so
// results are equal bit for bit for any pool size. token_products_cpu.cc is the readable reference,
// token_products_simd.cc what runs.

#include <cstdint>
#include <span>

namespace gradq {
class ThreadPool;
}

namespace gradq::kernels {

// packed[k] += Xᵀ diag(s_k) X, lower triangle row by row [columns * (columns + 1) / 2], with
// s_k[t] = (1/|J_k|) Σ_{j∈J_k} (scale * dz[t, j])². Group k holds the channels from group_begin[k]
// to group_begin[k + 1], the last entry is out. x [tokens, columns], dz [tokens, out].
void AccumulateFisherBlocks(const float* x, const float* dz, int64_t tokens, int64_t columns,
                            std::span<const int64_t> group_begin, float scale, float* const* packed,
                            ThreadPool* pool);

// packed += XᵀX, the same layout.
void AccumulateGram(const float* x, int64_t tokens, int64_t columns, float* packed,
                    ThreadPool* pool);

// sums [out, in] += Σ over sequences of (dzᵀX)², squared element by element. x [sequences * length,
// in], dz [sequences * length, out].
void AccumulateSquaredGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                                int64_t in, int64_t out, float* sums, ThreadPool* pool);

// sums [out, in] += scale * Σ over sequences of dzᵀX, or of its absolute values element by element.
// The same shapes.
void AccumulateGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                         int64_t in, int64_t out, bool absolute, float scale, float* sums,
                         ThreadPool* pool);

// The same by definition, one sum after the other in fp64 and one thread: oracles of the tests.
namespace reference {
void AccumulateFisherBlocks(const float* x, const float* dz, int64_t tokens, int64_t columns,
                            std::span<const int64_t> group_begin, float scale,
                            float* const* packed);
void AccumulateSquaredGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                                int64_t in, int64_t out, float* sums);
void AccumulateGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                         int64_t in, int64_t out, bool absolute, float scale, float* sums);
}  // namespace reference

}  // namespace gradq::kernels
