#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/device_memory.h"
#include "tests/simt/emulator.h"
#include "tests/simt/machine_probe.cuh"
#include "tests/simt/machine_probe.h"

namespace gradq::kernels {
namespace {

// Random words.
std::vector<Words4> ProbeInput() {
  std::mt19937 random(5);
  std::vector<Words4> input(kProbeWords / 4);
  for (Words4& words : input) {
    for (uint32_t& word : words.word) word = static_cast<uint32_t>(random());
  }
  return input;
}

std::vector<uint32_t> ProbeEmulator(const std::vector<Words4>& input, uint32_t seed) {
  std::vector<uint32_t> out(kProbeResults, 0xdeadbeef);
  const absl::Status status =
      RunGrid({.threads = kProbeThreads, .shared_bytes = kProbeSharedBytes}, seed,
              [&](const EmulatedSimt& s) {
                MachineProbe<EmulatedSimt>(s, input.data()->word, out.data()).Run();
              });
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

bool IsNanHalf(uint32_t half) { return (half & 0x7fff) > 0x7c00; }

// The payload of a NaN is not part of the machine.
bool SameHalf(uint32_t a, uint32_t b) {
  return (IsNanHalf(a & 0xffff) && IsNanHalf(b & 0xffff)) || (a & 0xffff) == (b & 0xffff);
}
bool SamePair(uint32_t a, uint32_t b) { return SameHalf(a, b) && SameHalf(a >> 16, b >> 16); }
bool SameFloat(uint32_t a, uint32_t b) {
  return a == b || (std::isnan(FloatOf(a)) && std::isnan(FloatOf(b)));
}
// The exponential is not rounded correctly anywhere: positive, a few steps apart.
bool NearFloat(uint32_t a, uint32_t b) {
  return std::abs(static_cast<int64_t>(a) - static_cast<int64_t>(b)) <= 4;
}
bool SameWord(uint32_t a, uint32_t b) { return a == b; }

void Compare(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  const struct {
    const char* name;
    int begin;
    int end;
    bool (*same)(uint32_t, uint32_t);
  } sections[] = {
      {"Prmt", kProbePermuted, kProbeWidened, SameWord},
      {"HalfToFloat", kProbeWidened, kProbePacked, SameFloat},
      {"FloatToHalf, PackHalf2", kProbePacked, kProbeDifferences, SamePair},
      {"SubHalf2", kProbeDifferences, kProbeProducts, SamePair},
      {"MulHalf2", kProbeProducts, kProbeExp, SamePair},
      {"Exp", kProbeExp, kProbeRoots, NearFloat},
      {"ReciprocalSqrt", kProbeRoots, kProbeShuffled, SameWord},
      {"ShuffleXor", kProbeShuffled, kProbeMma, SameWord},
      {"Mma", kProbeMma, kProbeLoaded, SameWord},
      {"Load, CopyAsync, SyncWarp", kProbeLoaded, kProbeResults, SameWord},
  };
  ASSERT_EQ(a.size(), b.size());
  for (const auto& section : sections) {
    for (int i = section.begin; i < section.end; ++i) {
      ASSERT_TRUE(section.same(a[i], b[i])) << section.name << ", result " << i - section.begin
                                            << std::hex << ": " << a[i] << ", " << b[i];
    }
  }
}

TEST(Machine, EmulatorDoesNotDependOnTheOrder) {
  const std::vector<Words4> input = ProbeInput();
  const std::vector<uint32_t> first = ProbeEmulator(input, 0);
  for (const uint32_t seed : kEmulatorSeeds) EXPECT_EQ(ProbeEmulator(input, seed), first);
  // The probe reaches what it is for: NaN, infinity and subnormals among the halves, zeros of
  // invalid copies.
  int specials[3] = {};
  for (int i = kProbePacked; i < kProbeDifferences; ++i) {
    specials[0] += IsNanHalf(first[i] & 0xffff);
    specials[1] += (first[i] & 0x7fff) == 0x7c00;
    specials[2] += (first[i] & 0x7c00) == 0 && (first[i] & 0x3ff) != 0;
  }
  for (const int count : specials) EXPECT_GT(count, 10);
  EXPECT_EQ(first[kProbeLoaded], 0u);
  EXPECT_EQ(first[kProbeLoaded + 4], input[7].word[0]);
}

TEST(Machine, DeviceIsTheEmulator) {
  if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  const std::vector<Words4> input = ProbeInput();
  const auto words = DeviceBuffer<Words4>::Upload(input);
  const auto out = DeviceBuffer<uint32_t>::Allocate(kProbeResults);
  ASSERT_TRUE(words.ok() && out.ok()) << words.status() << out.status();
  const absl::Status launched = ProbeDevice(words->data()->word, out->data());
  ASSERT_TRUE(launched.ok()) << launched;
  const auto results = out->Download();
  ASSERT_TRUE(results.ok()) << results.status();
  Compare(*results, ProbeEmulator(input, 0));
}

}  // namespace
}  // namespace gradq::kernels
