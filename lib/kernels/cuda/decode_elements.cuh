#pragma once

// What the kernels of decode_ops.cuh and token_attention.cuh share: eight neighbouring elements of
// a lane, sums over a warp or block, and the shape of a launch. A kernel there is an object, its
// arguments and a body over any machine S (simt.cuh), so that a launcher takes any of them:
// decode_launch.cuh on a device, the tests on the emulator. Kernel::kThreads: most threads of a
// block; kBlocks: how many of these a multiprocessor must hold, which bounds registers.

#include <cstdint>
#include <type_traits>

#include "lib/kernels/cuda/simt.cuh"
#include "lib/kernels/queue.h"

namespace gradq::kernels {

struct LaunchShape {
  int64_t grid_x = 1;
  int64_t grid_y = 1;
  int threads = kWarpLanes;
  int shared_bytes = 0;
};

// body(T{}) with the type that memory holds.
template <class Body>
auto WithElementType(FloatType type, const Body& body) {
  if (type == FloatType::kFloat32) return body(float{});
  if (type == FloatType::kFloat16) return body(Half{});
  return body(BFloat16{});
}

// body(T{}, std::true_type{}) where vectors may be taken, else with false_type.
template <class Body>
auto WithVectors(FloatType type, bool vectors, const Body& body) {
  return WithElementType(type, [&](auto zero) {
    return vectors ? body(zero, std::true_type{}) : body(zero, std::false_type{});
  });
}

inline bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

GRADQ_DEVICE uint32_t ElementBits(float value) { return FloatBits(value); }
GRADQ_DEVICE uint32_t ElementBits(Half value) { return value.bits; }
GRADQ_DEVICE uint32_t ElementBits(BFloat16 value) { return value.bits; }

// Eight elements as they lie in memory, so that loads on their way cost few registers.
template <class T>
struct Eight {
  static constexpr int kWords = 2 * static_cast<int>(sizeof(T));
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  uint32_t word[kWords];
};

template <class S>
GRADQ_DEVICE float Element(const S&, const Eight<float>& eight, int i) {
  return FloatOf(eight.word[i]);
}
template <class S>
GRADQ_DEVICE float Element(const S& s, const Eight<Half>& eight, int i) {
  return s.HalfToFloat(static_cast<uint16_t>(eight.word[i / 2] >> (i % 2 * 16)));
}
template <class S>
GRADQ_DEVICE float Element(const S&, const Eight<BFloat16>& eight, int i) {
  const uint32_t word = eight.word[i / 2];
  return FloatOf(i % 2 == 0 ? word << 16 : word & 0xffff0000);
}

// The first `count` of eight elements, zeros for the others, which are not read. With kVectors by
// 16 bytes: `from` is aligned to that, and count is at least 8 or at most 0.
template <bool kVectors, class S, class T>
GRADQ_DEVICE Eight<T> LoadEight(const S& s, const T* from, int count) {
  Eight<T> eight = {};
  if constexpr (kVectors) {
    if (count > 0) {
      GRADQ_UNROLL
      for (int w = 0; w < Eight<T>::kWords; w += 4) {
        const Words4 words = s.Load(reinterpret_cast<const Words4*>(from) + w / 4);
        GRADQ_UNROLL
        for (int i = 0; i < 4; ++i) eight.word[w + i] = words.word[i];
      }
    }
  } else {
    GRADQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (i < count) {
        eight.word[i / Eight<T>::kPerWord] |= ElementBits(from[i])
                                              << (i % Eight<T>::kPerWord * 8 * sizeof(T));
      }
    }
  }
  return eight;
}

// The first `count` of eight values, each rounded once; kVectors as above.
template <bool kVectors, class S, class T>
GRADQ_DEVICE void StoreEight(const S& s, T* to, const float (&value)[8], int count) {
  if constexpr (kVectors) {
    if (count <= 0) return;
    GRADQ_UNROLL
    for (int w = 0; w < Eight<T>::kWords; w += 4) {
      Words4 words = {};
      GRADQ_UNROLL
      for (int i = 0; i < 4 * Eight<T>::kPerWord; ++i) {
        T element;
        Store(s, &element, value[w * Eight<T>::kPerWord + i]);
        words.word[i / Eight<T>::kPerWord] |= ElementBits(element)
                                              << (i % Eight<T>::kPerWord * 8 * sizeof(T));
      }
      reinterpret_cast<Words4*>(to)[w / 4] = words;
    }
  } else {
    GRADQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (i < count) Store(s, to + i, value[i]);
    }
  }
}

// The same where a kernel looks at run time whether vectors may be taken.
template <class S, class T>
GRADQ_DEVICE void StoreEight(const S& s, T* to, const float (&value)[8], int count, bool vectors) {
  if (vectors) {
    StoreEight<true>(s, to, value, count);
  } else {
    StoreEight<false>(s, to, value, count);
  }
}

// The same sum in every lane: both partners of an exchange add the same two numbers.
template <class S>
GRADQ_DEVICE float WarpSum(const S& s, float value) {
  GRADQ_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) value += s.ShuffleXor(value, mask);
  return value;
}

// The same sum in every thread. Takes a float per warp of shared memory; once in a kernel.
template <class S>
GRADQ_DEVICE float BlockSum(const S& s, float value) {
  auto* const sums = reinterpret_cast<float*>(s.shared());
  const int lane = s.thread() % kWarpLanes;
  value = WarpSum(s, value);
  if (lane == 0) sums[s.thread() / kWarpLanes] = value;
  s.Sync();
  return WarpSum(s, lane < s.threads() / kWarpLanes ? sums[lane] : 0.f);
}

}  // namespace gradq::kernels
