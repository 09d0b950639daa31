#include "tests/simt/emulator.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/kernels/cuda/simt.cuh"

namespace gradq::kernels {
namespace {

using testing::HasSubstr;

// Sum of the block's threads + 1 by way of shared memory; what a kernel forgets is a flag.
template <bool kWithSync, class S>
GRADQ_DEVICE void SumKernel(const S& s, float* out) {
  auto* partial = reinterpret_cast<float*>(s.shared());
  const int t = s.thread();
  partial[t] = static_cast<float>(t + 1);
  if (kWithSync) s.Sync();
  for (int stride = s.threads() / 2; stride > 0; stride /= 2) {
    if (t < stride) partial[t] += partial[t + stride];
    if (kWithSync) s.Sync();
  }
  if (t == 0) out[s.block_y() * 2 + s.block_x()] = partial[0];
}

template <bool kWithSync>
bool SumsAreRight(uint32_t seed) {
  std::vector<float> sums(6);
  const absl::Status status =
      RunGrid({.grid_x = 2, .grid_y = 3, .threads = 256, .shared_bytes = 1024}, seed,
              [&](const EmulatedSimt& s) { SumKernel<kWithSync>(s, sums.data()); });
  EXPECT_TRUE(status.ok()) << status;
  return sums == std::vector<float>(6, 128 * 257);
}

TEST(Emulator, ReducesInEveryOrder) {
  for (uint32_t seed = 0; seed < 10; ++seed) EXPECT_TRUE(SumsAreRight<true>(seed)) << seed;
}

TEST(Emulator, MissingSyncShows) {
  int right = 0;
  for (const uint32_t seed : kEmulatorSeeds) right += SumsAreRight<false>(seed);
  EXPECT_LT(right, static_cast<int>(std::size(kEmulatorSeeds)));
}

TEST(Emulator, ASeedIsAnOrder) {
  const auto order_of = [](uint32_t seed) {
    std::vector<int> order;
    const absl::Status status = RunGrid({.threads = 128}, seed, [&](const EmulatedSimt& s) {
      order.push_back(s.thread());
      s.ShuffleXor(0, 1);
      order.push_back(s.thread());
    });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(order.size(), 256u);
    return order;
  };
  EXPECT_EQ(order_of(3), order_of(3));
  EXPECT_NE(order_of(3), order_of(5));
  EXPECT_EQ(order_of(0).front(), 0);
  EXPECT_EQ(order_of(1).front(), 127);
}

TEST(Emulator, SharedMemoryIsPoisonedForEveryBlock) {
  bool poisoned = true;
  const absl::Status status =
      RunGrid({.grid_x = 3, .shared_bytes = 128}, 0, [&](const EmulatedSimt& s) {
        auto* values = reinterpret_cast<float*>(s.shared());
        poisoned = poisoned && std::isnan(values[s.thread()]);
        values[s.thread()] = 1;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(poisoned);
}

TEST(Emulator, ShufflesOverAllMasks) {
  for (const int mask : {0, 1, 2, 4, 8, 16, 31}) {
    bool right = true;
    const absl::Status status = RunGrid({.threads = 64}, 2, [&](const EmulatedSimt& s) {
      const float got = s.ShuffleXor(static_cast<float>(s.thread()), mask);
      right = right && got == static_cast<float>(s.thread() ^ mask);
    });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(right) << mask;
  }
}

TEST(Emulator, WarpsMultiplyApart) {
  // All of A is the warp's number + 1, all of B is 2: every c is 32 · (warp + 1) a step.
  for (const uint32_t seed : kEmulatorSeeds) {
    bool right = true;
    const absl::Status status = RunGrid({.threads = 96}, seed, [&](const EmulatedSimt& s) {
      const int warp = s.thread() / 32;
      const auto number = static_cast<float>(warp + 1);
      const uint32_t both = s.PackHalf2(number, number);
      const uint32_t twos = s.PackHalf2(2, 2);
      const uint32_t a[4] = {both, both, both, both};
      const uint32_t b[2] = {twos, twos};
      float c[4] = {};
      for (int step = 0; step < 3; ++step) s.Mma(c, a, b);
      for (const float value : c) right = right && value == 96 * number;
    });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(right) << seed;
  }
}

// Adds up `steps` tiles of 16 bytes a thread, staged in two buffers.
template <bool kWithWait, class S>
GRADQ_DEVICE void StagedSumKernel(const S& s, const float* from, int steps, float* out) {
  const int t = s.thread();
  float* buffers = reinterpret_cast<float*>(s.shared());
  const auto fetch = [&](int step) {
    s.CopyAsync(buffers + (step % 2 * s.threads() + t) * 4,
                from + (static_cast<int64_t>(step) * s.threads() + t) * 4, step < steps);
    s.CommitCopies();
  };
  float sum = 0;
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    fetch(step + 1);
    if (kWithWait) s.template WaitCopies<1>();
    s.Sync();
    // A neighbour's, so that Sync counts.
    const float* tile = buffers + (step % 2 * s.threads() + (t + 1) % s.threads()) * 4;
    for (int i = 0; i < 4; ++i) sum += tile[i];
    s.Sync();
  }
  out[t] = sum;
}

template <bool kWithWait>
std::vector<float> StagedSums(uint32_t seed, int steps) {
  const int threads = 64;
  std::vector<Words4> memory(steps * threads);
  auto* from = reinterpret_cast<float*>(memory.data());
  for (int i = 0; i < steps * threads * 4; ++i) from[i] = static_cast<float>(i % 1000);
  std::vector<float> sums(threads);
  const absl::Status status = RunGrid(
      {.threads = threads, .shared_bytes = 2 * threads * 16}, seed,
      [&](const EmulatedSimt& s) { StagedSumKernel<kWithWait>(s, from, steps, sums.data()); });
  EXPECT_TRUE(status.ok()) << status;
  for (int t = 0; t < threads; ++t) {
    for (int step = 0; step < steps; ++step) {
      for (int i = 0; i < 4; ++i) {
        sums[t] -= static_cast<float>(((step * threads + (t + 1) % threads) * 4 + i) % 1000);
      }
    }
  }
  return sums;
}

TEST(Emulator, CopiesLandWhenWaitedFor) {
  for (const uint32_t seed : kEmulatorSeeds) {
    EXPECT_EQ(StagedSums<true>(seed, 5), std::vector<float>(64, 0)) << seed;
  }
}

TEST(Emulator, CopiesWithoutAWaitDoNotLand) {
  for (const float sum : StagedSums<false>(0, 5)) EXPECT_TRUE(std::isnan(sum));
}

// Lanes pass a number on to the next lane of their warp by way of shared memory.
template <bool kWithSync>
bool LanesPassOn(uint32_t seed) {
  bool right = true;
  const absl::Status status =
      RunGrid({.threads = 64, .shared_bytes = 256}, seed, [&](const EmulatedSimt& s) {
        auto* slots = reinterpret_cast<int*>(s.shared());
        slots[s.thread()] = s.thread();
        if (kWithSync) s.SyncWarp();
        const int next = s.thread() ^ 1;
        right = right && slots[next] == next;
      });
  EXPECT_TRUE(status.ok()) << status;
  return right;
}

TEST(Emulator, SyncWarpOrdersLanes) {
  for (const uint32_t seed : kEmulatorSeeds) {
    EXPECT_TRUE(LanesPassOn<true>(seed)) << seed;
    EXPECT_FALSE(LanesPassOn<false>(seed)) << seed;
  }
}

TEST(Emulator, AnInvalidCopyWritesZerosAndReadsNothing) {
  float value = -1;
  const absl::Status status = RunGrid({.shared_bytes = 16}, 0, [&](const EmulatedSimt& s) {
    if (s.thread() != 0) return;
    // No memory lies there, and it is not aligned.
    s.CopyAsync(s.shared(), reinterpret_cast<const void*>(8), false);
    s.CommitCopies();
    s.WaitCopies<0>();
    std::memcpy(&value, s.shared() + 12, sizeof value);
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(value, 0);
}

// One kind of misuse per case.
struct Misuse {
  const char* name;
  const char* message;
  std::function<void(const EmulatedSimt&)> body;
};

class EmulatorMisuse : public testing::TestWithParam<Misuse> {};

TEST_P(EmulatorMisuse, IsReported) {
  for (const uint32_t seed : kEmulatorSeeds) {
    const absl::Status status = RunGrid({.grid_x = 2, .threads = 64, .shared_bytes = 1024}, seed,
                                        [&](const EmulatedSimt& s) { GetParam().body(s); });
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), HasSubstr("emulated block ("));
    EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  }
}

const uint32_t kNoA[4] = {};
const uint32_t kNoB[2] = {};
alignas(16) char global_bytes[64];

const Misuse kMisuses[] = {
    {"SyncWithoutAll", "threads diverge: 63 wait in Sync, 1 have returned",
     [](const EmulatedSimt& s) {
       if (s.thread() != 40) s.Sync();
     }},
    {"WarpCallBesideSync",
     "33 wait in Sync, 0 have returned, 31 wait for the rest of their warp in Mma",
     [](const EmulatedSimt& s) {
       float c[4] = {};
       if (s.thread() < 31) s.Mma(c, kNoA, kNoB);
       s.Sync();
     }},
    {"WarpCallWithoutAll", "33 have returned, 31 wait for the rest of their warp in ShuffleXor",
     [](const EmulatedSimt& s) {
       if (s.thread() < 32) return;
       if (s.thread() != 63) s.ShuffleXor(1, 1);
     }},
    {"SyncWarpWithoutAll",
     "0 wait in Sync, 33 have returned, 31 wait for the rest of their warp in SyncWarp",
     [](const EmulatedSimt& s) {
       if (s.thread() > 32) s.SyncWarp();
     }},
    {"TwoWarpCalls", "lanes of a warp meet in different calls",
     [](const EmulatedSimt& s) {
       float c[4] = {};
       if (s.thread() % 2 == 0) {
         s.Mma(c, kNoA, kNoB);
       } else {
         s.ShuffleXor(1, 1);
       }
     }},
    {"TwoMasks", "shuffle with different masks",
     [](const EmulatedSimt& s) { s.ShuffleXor(1, s.thread() % 2 + 1); }},
    {"Mask", "ShuffleXor over mask 32", [](const EmulatedSimt& s) { s.ShuffleXor(1, 32); }},
    {"MisalignedLoad", "Load of an address that is not 16-byte aligned",
     [](const EmulatedSimt& s) { s.Load(reinterpret_cast<const Words4*>(global_bytes + 8)); }},
    {"MisalignedStreaming", "LoadStreaming of an address that is not 16-byte aligned",
     [](const EmulatedSimt& s) {
       s.LoadStreaming(reinterpret_cast<const Words4*>(global_bytes + 4));
     }},
    {"StreamingFromShared", "LoadStreaming of shared memory",
     [](const EmulatedSimt& s) { s.LoadStreaming(reinterpret_cast<const Words4*>(s.shared())); }},
    {"LoadBeyondShared", "Load beyond shared memory",
     [](const EmulatedSimt& s) { s.Load(reinterpret_cast<const Words4*>(s.shared() + 1024)); }},
    {"MisalignedCopyTo", "CopyAsync to an address that is not 16-byte aligned",
     [](const EmulatedSimt& s) { s.CopyAsync(s.shared() + 2, global_bytes, true); }},
    {"MisalignedCopyFrom", "CopyAsync from an address that is not 16-byte aligned",
     [](const EmulatedSimt& s) { s.CopyAsync(s.shared(), global_bytes + 2, true); }},
    {"CopyBeyondShared", "CopyAsync to outside of shared memory",
     [](const EmulatedSimt& s) { s.CopyAsync(s.shared() + 1024, global_bytes, true); }},
    {"CopyFromShared", "CopyAsync from shared memory",
     [](const EmulatedSimt& s) { s.CopyAsync(s.shared(), s.shared() + 16, true); }},
    {"WriteBehindShared", "write outside of shared memory: byte 1027 of 1024",
     [](const EmulatedSimt& s) { s.shared()[1027] = 0; }},
    {"WriteBeforeShared", "write outside of shared memory: byte -1 of 1024",
     [](const EmulatedSimt& s) { s.shared()[-1] = 0; }},
};

INSTANTIATE_TEST_SUITE_P(Kinds, EmulatorMisuse, testing::ValuesIn(kMisuses),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Emulator, RefusesShapesThatNoDeviceTakes) {
  for (const GridShape shape :
       {GridShape{.threads = 0}, GridShape{.threads = 48}, GridShape{.threads = 2048},
        GridShape{.grid_x = 0}, GridShape{.grid_y = 65536}, GridShape{.shared_bytes = 240000}}) {
    const absl::Status status = RunGrid(shape, 0, [](const EmulatedSimt&) {});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

}  // namespace
}  // namespace gradq::kernels
