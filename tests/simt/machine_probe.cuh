#pragma once

// Every call of a machine `S` (lib/kernels/cuda/simt.cuh) with given words, for the comparison of
// DeviceSimt with EmulatedSimt: what the emulator proves of a kernel holds on a device as far as
// the two agree here. One block of kProbeThreads; all results are words.

#include <cstdint>

#include "lib/kernels/cuda/simt.cuh"

namespace gradq::kernels {

inline constexpr int kProbeThreads = 64;
inline constexpr int kProbeWords = 8192;  // of input, a multiple of 4
inline constexpr int kProbeSharedBytes = 2 * kProbeThreads * 16;

// Sections of the output.
inline constexpr int kProbePermuted = 0;
inline constexpr int kProbeWidened = kProbePermuted + kProbeWords;
inline constexpr int kProbePacked = kProbeWidened + kProbeWords;
inline constexpr int kProbeDifferences = kProbePacked + kProbeWords;
inline constexpr int kProbeProducts = kProbeDifferences + kProbeWords;
inline constexpr int kProbeExp = kProbeProducts + kProbeWords;
inline constexpr int kProbeRoots = kProbeExp + kProbeWords;
inline constexpr int kProbeShuffled = kProbeRoots + kProbeWords;
inline constexpr int kProbeMma = kProbeShuffled + 5 * kProbeThreads;
inline constexpr int kProbeLoaded = kProbeMma + 4 * kProbeThreads;
inline constexpr int kProbeResults = kProbeLoaded + 16 * kProbeThreads;

template <class S>
class MachineProbe {
 public:
  // `words` is 16-byte aligned.
  GRADQ_DEVICE MachineProbe(const S& s, const uint32_t* words, uint32_t* out)
      : s_(s), words_(words), out_(out) {}

  GRADQ_DEVICE void Run() const {
    for (int i = s_.thread(); i < kProbeWords; i += s_.threads()) Scalars(i);
    Shuffles();
    Products();
    Copies();
  }

 private:
  GRADQ_DEVICE uint32_t Word(int i) const { return words_[i % kProbeWords]; }

  GRADQ_DEVICE void Scalars(int i) const {
    const uint32_t word = Word(i);
    const uint32_t next = Word(i + 1);
    const float low = s_.HalfToFloat(static_cast<uint16_t>(word));
    const float high = s_.HalfToFloat(static_cast<uint16_t>(word >> 16));
    out_[kProbePermuted + i] = s_.Prmt(word, next, Word(i + 2));
    out_[kProbeWidened + i] = FloatBits(low);
    // A product of two halves lies between halves, a word is any float.
    out_[kProbePacked + i] = i % 2 == 0
                                 ? s_.PackHalf2(low * high, FloatOf(word))
                                 : s_.FloatToHalf(low * high) |
                                       static_cast<uint32_t>(s_.FloatToHalf(FloatOf(word))) << 16;
    out_[kProbeDifferences + i] = s_.SubHalf2(word, next);
    out_[kProbeProducts + i] = s_.MulHalf2(word, next);
    out_[kProbeExp + i] = FloatBits(s_.Exp(static_cast<float>(word % 4001) * 0.02f - 60.f));
    out_[kProbeRoots + i] = FloatBits(s_.ReciprocalSqrt(FloatOf((word & 0x3fffffff) + 0x10000000)));
  }

  GRADQ_DEVICE void Shuffles() const {
    const int t = s_.thread();
    for (int i = 0; i < 5; ++i) {
      out_[kProbeShuffled + i * kProbeThreads + t] =
          FloatBits(s_.ShuffleXor(FloatOf(Word(t) & 0x3fffffff), 1 << i));
    }
  }

  // Whole numbers small enough that every sum is exact in every order.
  GRADQ_DEVICE uint32_t SmallPair(int i) const {
    const uint32_t word = Word(i);
    return s_.PackHalf2(static_cast<float>(word % 41) - 20.f,
                        static_cast<float>(word / 41 % 41) - 20.f);
  }

  GRADQ_DEVICE void Products() const {
    const int t = s_.thread();
    float c[4];
    for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(Word(t * 4 + i) % 1000);
    for (int step = 0; step < 3; ++step) {
      uint32_t a[4];
      uint32_t b[2];
      const int at = (step * kProbeThreads + t) * 6;
      for (int i = 0; i < 4; ++i) a[i] = SmallPair(at + i);
      for (int i = 0; i < 2; ++i) b[i] = SmallPair(at + 4 + i);
      s_.Mma(c, a, b);
    }
    for (int i = 0; i < 4; ++i) out_[kProbeMma + i * kProbeThreads + t] = FloatBits(c[i]);
  }

  GRADQ_DEVICE void Put(int at, const Words4& value) const {
    for (int i = 0; i < 4; ++i) {
      out_[kProbeLoaded + (at * kProbeThreads + s_.thread()) * 4 + i] = value.word[i];
    }
  }

  GRADQ_DEVICE void Copies() const {
    const int t = s_.thread();
    const auto* from = reinterpret_cast<const Words4*>(words_);
    auto* shared = reinterpret_cast<Words4*>(s_.shared());
    for (int group = 0; group < 2; ++group) {
      s_.CopyAsync(shared + group * kProbeThreads + t, from + 7 * t + group, (t + group) % 3 != 0);
      s_.CommitCopies();
    }
    s_.template WaitCopies<1>();
    Put(0, s_.Load(shared + t));
    s_.template WaitCopies<0>();
    s_.Sync();
    Put(1, s_.Load(shared + kProbeThreads + (t + 33) % kProbeThreads));
    Put(2, s_.LoadStreaming(from + 3 * t));
    s_.Sync();
    shared[t].word[0] = static_cast<uint32_t>(t);
    s_.SyncWarp();
    Put(3, Words4{{shared[t ^ 5].word[0], static_cast<uint32_t>(s_.threads()),
                   static_cast<uint32_t>(s_.block_x()), static_cast<uint32_t>(s_.block_y())}});
  }

  const S& s_;
  const uint32_t* words_;
  uint32_t* out_;
};

}  // namespace gradq::kernels
