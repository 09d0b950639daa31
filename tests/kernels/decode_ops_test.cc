// Every op of a decode step on the emulator (under all its thread orders, bit-equal) and on a
// device, against the plain loops; the plain loops themselves against ATen in
// tests/transformer/decode_ops_oracle_test.cc.

#include "lib/kernels/decode_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda/decode_ops.cuh"
#include "lib/kernels/cuda/token_attention.cuh"
#include "lib/kernels/float16.h"
#include "tests/kernels/device_memory.h"
#include "tests/simt/emulator.h"

namespace gradq::kernels {
namespace {

constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBFloat16};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::string NameOf(FloatType type) {
  return type == FloatType::kFloat32 ? "fp32" : type == FloatType::kFloat16 ? "fp16" : "bf16";
}
int64_t SizeOf(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

std::vector<char> Encode(FloatType type, const std::vector<float>& values) {
  std::vector<char> bytes(values.size() * SizeOf(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half =
        type == FloatType::kFloat16 ? FloatToFloat16(values[i]) : FloatToBFloat16(values[i]);
    const void* from = type == FloatType::kFloat32 ? static_cast<const void*>(&values[i]) : &half;
    std::memcpy(&bytes[i * SizeOf(type)], from, SizeOf(type));
  }
  return bytes;
}

std::vector<float> Decode(FloatType type, const std::vector<char>& bytes) {
  std::vector<float> values(bytes.size() / SizeOf(type));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, &bytes[i * SizeOf(type)], 2);
    if (type == FloatType::kFloat32) std::memcpy(&values[i], &bytes[4 * i], 4);
    if (type == FloatType::kFloat16) values[i] = Float16ToFloat(half);
    if (type == FloatType::kBFloat16) values[i] = BFloat16ToFloat(half);
  }
  return values;
}

// In (-scale, scale), the same on every machine.
std::vector<float> Values(int64_t count, uint32_t seed, float scale = 1) {
  std::vector<float> values(count);
  uint32_t state = seed * 2654435761u + 12345;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = (static_cast<float>(state >> 8) * 0x1p-23f - 1) * scale;
  }
  return values;
}

// The same call of an op on any place: its public entry, or its kernels on the emulator.
absl::Status Call(const Queue& queue, const EmbedTokenArgs& args) {
  return EmbedToken(queue, args);
}
absl::Status Call(const Queue& queue, const AddRmsNormArgs& args) {
  return AddRmsNorm(queue, args);
}
absl::Status Call(const Queue& queue, const RotaryAppendArgs& args) {
  return RotaryAppend(queue, args);
}
absl::Status Call(const Queue& queue, const TokenAttentionArgs& args) {
  return TokenAttention(queue, args);
}
absl::Status Call(const Queue& queue, const SwigluArgs& args) { return SwigluVector(queue, args); }
template <class L>
absl::Status Launch(const EmbedTokenArgs& args, const L& launch) {
  return LaunchEmbedToken(args, launch);
}
template <class L>
absl::Status Launch(const AddRmsNormArgs& args, const L& launch) {
  return LaunchAddRmsNorm(args, launch);
}
template <class L>
absl::Status Launch(const RotaryAppendArgs& args, const L& launch) {
  return LaunchRotaryAppend(args, launch);
}
template <class L>
absl::Status Launch(const TokenAttentionArgs& args, const L& launch) {
  return LaunchTokenAttention(args, launch);
}
template <class L>
absl::Status Launch(const SwigluArgs& args, const L& launch) {
  return LaunchSwigluVector(args, launch);
}

// Where an op runs, with the memory it runs on.
class Place {
 public:
  enum Kind { kOracle, kEmulator, kDevice };
  explicit Place(Kind kind, uint32_t seed = 0) : kind_(kind), seed_(seed) {}

  // A copy of `bytes`, `shift` bytes behind a 256-byte boundary; null for none.
  char* Put(const std::vector<char>& bytes, int64_t shift = 0) {
    if (bytes.empty()) return nullptr;
    std::vector<char> with_guards(kGuard + shift, kFill);
    with_guards.insert(with_guards.end(), bytes.begin(), bytes.end());
    with_guards.resize(with_guards.size() + kGuard, kFill);
    if (kind_ == kDevice) {
      device_.push_back(*DeviceBuffer<char>::Upload(with_guards));
      return device_.back().data() + kGuard + shift;
    }
    host_.emplace_back((with_guards.size() + 255) / 256 + 1);
    char* const to = host_.back().data()->bytes;
    std::copy(with_guards.begin(), with_guards.end(), to);
    return to + kGuard + shift;
  }
  template <class T>
  T* PutValues(const std::vector<T>& values) {
    const char* const bytes = reinterpret_cast<const char*>(values.data());
    return reinterpret_cast<T*>(Put({bytes, bytes + values.size() * sizeof(T)}));
  }

  template <class Args>
  void Run(const Args& args) {
    absl::Status status;
    if (kind_ == kEmulator) {
      status = Launch(args, [&](const char*, const LaunchShape& shape, const auto& kernel) {
        if (shape.threads > kernel.kThreads) return absl::InternalError("too many threads");
        const GridShape grid = {.grid_x = shape.grid_x,
                                .grid_y = shape.grid_y,
                                .threads = shape.threads,
                                .shared_bytes = shape.shared_bytes};
        return RunGrid(grid, seed_, [&](const EmulatedSimt& s) { kernel(s); });
      });
    } else {
      status = Call(kind_ == kDevice ? Queue::Cuda(nullptr) : Queue::Cpu(), args);
    }
    EXPECT_EQ(status, absl::OkStatus());
  }

  std::vector<char> Get(const void* from, int64_t bytes) {
    std::vector<char> got(bytes);
    if (kind_ != kDevice) {
      std::memcpy(got.data(), from, bytes);
      for (int64_t i = 0; i < kGuard; ++i) {
        EXPECT_EQ(static_cast<const char*>(from)[bytes + i], kFill) << "written " << i << " beyond";
        EXPECT_EQ(static_cast<const char*>(from)[-1 - i], kFill)
            << "written " << i + 1 << " before";
      }
      return got;
    }
    for (const DeviceBuffer<char>& buffer : device_) {
      const int64_t offset = static_cast<const char*>(from) - buffer.data();
      if (offset < 0 || offset >= buffer.size()) continue;
      const auto all = buffer.Download();
      if (!all.ok()) {
        ADD_FAILURE() << all.status();
        return got;
      }
      std::copy_n(all->begin() + offset, bytes, got.begin());
    }
    return got;
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr char kFill = '\xff';
  struct alignas(256) Line {
    char bytes[256];
  };

  Kind kind_;
  uint32_t seed_;
  std::deque<std::vector<Line>> host_;
  std::deque<DeviceBuffer<char>> device_;
};

class DecodeOpsTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam()) SetUpDevice();
  }

  // What `run` gives on the place under test, the same under every thread order, is that of the
  // oracle within `tolerance` and, where that is not 0, one rounding to `type`. NaN equals nothing.
  using Outputs = std::vector<float>;
  void Compare(const std::string& what, FloatType type, float tolerance,
               const std::function<Outputs(Place&)>& run) {
    SCOPED_TRACE(StrCat(what, " ", NameOf(type)));
    Place oracle(Place::kOracle);
    const Outputs expected = run(oracle);
    std::optional<Outputs> first;
    for (const uint32_t seed : kEmulatorSeeds) {
      Place place(GetParam() ? Place::kDevice : Place::kEmulator, seed);
      const Outputs actual = run(place);
      ASSERT_EQ(actual.size(), expected.size());
      if (!first) {
        first = actual;
        CompareValues(actual, expected, type, tolerance);
      } else {
        EXPECT_EQ(std::memcmp(actual.data(), first->data(), 4 * actual.size()), 0)
            << "thread order " << seed;
      }
      if (HasFailure()) return;
    }
  }

 private:
  static void CompareValues(const Outputs& actual, const Outputs& expected, FloatType type,
                            float tolerance) {
    const float ulp = tolerance == 0                ? 0
                      : type == FloatType::kFloat32 ? 0x1p-22f
                      : type == FloatType::kFloat16 ? 0x1p-10f
                                                    : 0x1p-7f;
    for (size_t i = 0; i < expected.size(); ++i) {
      const float allowed = tolerance + ulp * std::abs(expected[i]);
      if (std::abs(actual[i] - expected[i]) <= allowed) continue;
      ADD_FAILURE() << "value " << i << " is " << actual[i] << ", not " << expected[i];
      return;
    }
  }
};

TEST_P(DecodeOpsTest, EmbedToken) {
  for (const FloatType type : kTypes) {
    for (const int64_t hidden : {1, 65, 4096}) {
      const std::vector<char> embedding = Encode(type, Values(3 * hidden, 1));
      Compare(StrCat("hidden ", hidden), type, 0, [&](Place& place) {
        EmbedTokenArgs args;
        args.type = type;
        args.embedding = place.Put(embedding);
        args.token = place.PutValues<int32_t>({2});
        args.hidden = hidden;
        args.residual = place.PutValues(std::vector<float>(hidden, kNan));
        place.Run(args);
        return Decode(FloatType::kFloat32, place.Get(args.residual, 4 * hidden));
      });
    }
  }
}

TEST_P(DecodeOpsTest, AddRmsNorm) {
  // 8200 and 8197: more than the registers of a block's threads hold, with and without vectors.
  for (const int64_t hidden : {1, 7, 64, 65, 4096, 8200, 8197}) {
    for (const FloatType type : kTypes) {
      for (const bool add : {true, false}) {
        for (const bool shifted : {false, true}) {
          if (hidden > 4096 && (shifted || !add || type == FloatType::kBFloat16)) continue;
          Compare(StrCat("hidden ", hidden, add ? " add" : "", shifted ? " shifted" : ""), type,
                  2e-6f, [&](Place& place) {
                    AddRmsNormArgs args;
                    args.type = type;
                    args.residual = place.PutValues(Values(hidden, 1, 3));
                    if (add) args.addend = place.Put(Encode(type, Values(hidden, 2)));
                    args.weight =
                        place.Put(Encode(type, Values(hidden, 3)), shifted ? SizeOf(type) : 0);
                    args.eps = 1e-5f;
                    args.hidden = hidden;
                    args.normed = place.Put(Encode(type, std::vector<float>(hidden, kNan)));
                    place.Run(args);
                    Outputs outputs = Decode(type, place.Get(args.normed, hidden * SizeOf(type)));
                    const Outputs sum =
                        Decode(FloatType::kFloat32, place.Get(args.residual, 4 * hidden));
                    outputs.insert(outputs.end(), sum.begin(), sum.end());
                    return outputs;
                  });
        }
      }
    }
  }
}

struct RotaryCase {
  int64_t heads, kv_heads, head_dim, capacity;
  int32_t position;
  bool norms;
};

TEST_P(DecodeOpsTest, RotaryAppend) {
  constexpr RotaryCase kCases[] = {
      {1, 1, 2, 1, 0, false},  {3, 1, 6, 65, 63, true}, {8, 1, 64, 64, 63, false},
      {8, 1, 128, 5, 1, true}, {2, 2, 256, 3, 2, true}, {4, 2, 128, 70, 69, false},
      {3, 3, 2, 2, 1, true},   {6, 2, 66, 4, 0, true},  {6, 2, 254, 4, 3, false},
  };
  for (const RotaryCase& c : kCases) {
    for (const FloatType type : kTypes) {
      const int64_t q_size = c.heads * c.head_dim, k_size = c.kv_heads * c.head_dim;
      const int64_t cache = k_size * c.capacity;
      const auto in = [&](int64_t count, uint32_t seed) {
        return Encode(type, Values(count, seed));
      };
      // Without norms there is one fp32 formula, and its value is exact.
      Compare(StrCat("head_dim ", c.head_dim, " position ", c.position), type, c.norms ? 1e-6f : 0,
              [&](Place& place) {
                RotaryAppendArgs args;
                args.type = type;
                args.q = place.Put(in(q_size, 1));
                args.k = place.Put(in(k_size, 2));
                args.v = place.Put(in(k_size, 3));
                if (c.norms) args.q_norm = place.Put(in(c.head_dim, 4));
                if (c.norms) args.k_norm = place.Put(in(c.head_dim, 5));
                args.eps = 1e-6f;
                // Unlike those of a model, the halves of a row differ: which one is read matters.
                args.cos = place.PutValues(Values(c.capacity * c.head_dim, 6));
                args.sin = place.PutValues(Values(c.capacity * c.head_dim, 7));
                args.position = place.PutValues<int32_t>({c.position});
                args.heads = c.heads;
                args.kv_heads = c.kv_heads;
                args.head_dim = c.head_dim;
                args.capacity = c.capacity;
                args.rotated = place.Put(Encode(type, std::vector<float>(q_size, kNan)));
                args.keys = place.Put(in(cache, 8));
                args.values = place.Put(in(cache, 9));
                place.Run(args);
                Outputs outputs = Decode(type, place.Get(args.rotated, q_size * SizeOf(type)));
                for (const void* to : {args.keys, args.values}) {
                  const Outputs more = Decode(type, place.Get(to, cache * SizeOf(type)));
                  outputs.insert(outputs.end(), more.begin(), more.end());
                }
                return outputs;
              });
    }
  }
}

struct AttentionCase {
  int64_t kv_heads, group, head_dim, capacity;
  int32_t position;
  int64_t window;
  int64_t splits;
  int64_t shift = 0;  // elements of the values' address
};

// Every group size, head size, position and split count stands in some case with every other kind.
constexpr AttentionCase kAttentionCases[] = {
    {1, 1, 2, 1, 0, 0, 1},       {2, 3, 6, 70, 1, 0, 7},       {1, 8, 64, 64, 63, 0, 2},
    {2, 1, 128, 300, 299, 0, 7}, {1, 8, 256, 40, 39, 0, 1},    {2, 4, 128, 130, 129, 0, 2},
    {1, 2, 64, 80, 63, 17, 7},   {1, 5, 128, 50, 1, 0, 7},     {1, 9, 64, 65, 63, 1000, 2},
    {3, 1, 96, 90, 88, 33, 2},   {1, 16, 2, 200, 199, 0, 1},   {2, 3, 256, 64, 0, 0, 2},
    {1, 3, 100, 70, 63, 64, 7},  {1, 1, 64, 600, 511, 256, 2}, {1, 4, 64, 64, 62, 0, 1, 1},
    {1, 1, 8, 500, 400, 0, 1},   {1, 2, 254, 66, 65, 1, 7},    {1, 1, 128, 64, 63, 0, 100},
    {2, 6, 8, 9, 8, 4, 2},       {1, 2, 6, 100, 98, 65, 1},
};

// `fill` stands in the cache at positions that must not be read.
std::vector<float> RunAttention(Place& place, const AttentionCase& c, FloatType type, float fill,
                                float scale) {
  const int64_t heads = c.kv_heads * c.group;
  const auto cache = [&](uint32_t seed) {
    std::vector<float> values = Values(c.kv_heads * c.capacity * c.head_dim, seed);
    for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
      const int64_t t = i / c.head_dim % c.capacity;
      if (t > c.position || (c.window > 0 && t <= c.position - c.window)) values[i] = fill;
    }
    return Encode(type, values);
  };
  TokenAttentionArgs args;
  args.type = type;
  args.q = place.Put(Encode(type, Values(heads * c.head_dim, 1, scale)));
  args.keys = place.Put(cache(2));
  args.values = place.Put(cache(3), c.shift * SizeOf(type));
  args.position = place.PutValues<int32_t>({c.position});
  args.window = c.window;
  args.heads = heads;
  args.kv_heads = c.kv_heads;
  args.head_dim = c.head_dim;
  args.capacity = c.capacity;
  args.splits = c.splits;
  args.partial = place.PutValues(std::vector<float>(TokenAttentionScratch(args), kNan));
  args.out = place.Put(Encode(type, std::vector<float>(heads * c.head_dim, kNan)));
  place.Run(args);
  if (args.partial != nullptr) place.Get(args.partial, 4 * TokenAttentionScratch(args));
  return Decode(type, place.Get(args.out, heads * c.head_dim * SizeOf(type)));
}

TEST_P(DecodeOpsTest, TokenAttention) {
  for (const AttentionCase& c : kAttentionCases) {
    for (const FloatType type : kTypes) {
      Compare(StrCat("kv heads ", c.kv_heads, " group ", c.group, " head_dim ", c.head_dim,
                     " position ", c.position, " window ", c.window, " splits ", c.splits),
              type, 2e-6f, [&](Place& place) { return RunAttention(place, c, type, kNan, 4); });
    }
  }
}

// Scores of ±100 and more: exponentials that are not taken of differences leave fp32.
TEST_P(DecodeOpsTest, TokenAttentionOfGreatScores) {
  const AttentionCase c = {1, 4, 64, 200, 150, 0, 7};
  Compare("great scores", FloatType::kFloat32, 1e-4f,
          [&](Place& place) { return RunAttention(place, c, FloatType::kFloat32, kNan, 300); });
}

TEST_P(DecodeOpsTest, SwigluVector) {
  for (const FloatType type : kTypes) {
    for (const int64_t count : {1, 65, 520, 4096}) {
      for (const bool in_place : {false, true}) {
        Compare(StrCat("count ", count, in_place ? " in place" : ""), type, 2e-6f,
                [&](Place& place) {
                  std::vector<float> gate = Values(count, 1, 20);
                  gate[count / 2] = -200;  // exp(200) is infinite, silu is -0
                  SwigluArgs args;
                  args.type = type;
                  args.gate = place.Put(Encode(type, gate));
                  args.up = place.Put(Encode(type, Values(count, 2)), in_place ? SizeOf(type) : 0);
                  args.count = count;
                  args.out = in_place ? const_cast<void*>(args.gate)
                                      : place.Put(Encode(type, std::vector<float>(count, kNan)));
                  place.Run(args);
                  return Decode(type, place.Get(args.out, count * SizeOf(type)));
                });
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, DecodeOpsTest, testing::Bool(), [](const auto& info) {
  return std::string(info.param ? "Device" : "Emulator");
});

// A graph records launches before there is a position: nothing on the host may look at it.
TEST(DecodeOpsLaunchTest, ShapesAreMadeWithoutThePosition) {
  const auto* const nowhere = reinterpret_cast<const int32_t*>(16);
  int launches = 0;
  const auto count = [&](const char*, const LaunchShape& shape, const auto&) {
    EXPECT_GT(shape.grid_x * shape.grid_y, 0);
    ++launches;
    return absl::OkStatus();
  };
  EmbedTokenArgs embed;
  embed.token = nowhere;
  embed.hidden = 64;
  RotaryAppendArgs rotary;
  rotary.position = nowhere;
  rotary.heads = rotary.kv_heads = 1;
  TokenAttentionArgs attention;
  attention.position = nowhere;
  attention.heads = attention.kv_heads = 2;
  attention.head_dim = 64;
  attention.capacity = 100;
  attention.splits = 3;
  EXPECT_TRUE(LaunchEmbedToken(embed, count).ok());
  EXPECT_TRUE(LaunchRotaryAppend(rotary, count).ok());
  EXPECT_TRUE(LaunchTokenAttention(attention, count).ok());
  EXPECT_EQ(launches, 4);  // the fourth joins the splits
  attention.splits = 1;
  EXPECT_TRUE(LaunchTokenAttention(attention, count).ok());
  EXPECT_EQ(launches, 5);
}

TEST(DecodeOpsArgsTest, ScratchAndSplits) {
  TokenAttentionArgs args;
  args.heads = 6;
  args.head_dim = 64;
  args.splits = 1;
  EXPECT_EQ(TokenAttentionScratch(args), 0);
  args.splits = 3;
  EXPECT_EQ(TokenAttentionScratch(args), 6 * 3 * 66);
  EXPECT_EQ(TokenAttentionSplits(8, 4096, 132), 32);  // by the capacity
  EXPECT_EQ(TokenAttentionSplits(32, 4096, 132), 9);  // by the multiprocessors
  EXPECT_EQ(TokenAttentionSplits(8, 100, 132), 1);
  EXPECT_EQ(TokenAttentionSplits(1, 1 << 30, 1 << 20), kMaxAttentionSplits);
}

TEST(DecodeOpsArgsTest, RefusesWhatHasNoMeaning) {
  const auto refused = [](const absl::Status& status) {
    return status.code() == absl::StatusCode::kInvalidArgument;
  };
  std::vector<float> x(4096);
  int32_t index = 0;
  for (const Queue& queue : {Queue::Cpu(), Queue::Cuda(nullptr)}) {
    EXPECT_TRUE(refused(EmbedToken(queue, {})));
    EXPECT_TRUE(refused(SwigluVector(queue, {})));
    EXPECT_TRUE(refused(AddRmsNorm(queue, {})));
    EXPECT_TRUE(refused(RotaryAppend(queue, {})));
    EXPECT_TRUE(refused(AddRmsNorm(
        queue, {.residual = x.data(), .weight = x.data(), .hidden = 0, .normed = x.data()})));
    TokenAttentionArgs good;
    good.type = FloatType::kFloat32;
    good.q = good.keys = good.values = x.data();
    good.position = &index;
    good.heads = 4;
    good.kv_heads = 2;
    good.head_dim = 8;
    good.capacity = 2;
    good.out = x.data() + 2048;
    const auto with = [&](auto change) {
      TokenAttentionArgs bad = good;
      change(bad);
      return TokenAttention(queue, bad);
    };
    EXPECT_TRUE(refused(with([](auto& a) { a.heads = 3; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.kv_heads = 0; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.head_dim = 7; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.head_dim = 258; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.capacity = 0; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.window = -1; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.splits = 0; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.splits = kMaxAttentionSplits + 1; })));
    EXPECT_TRUE(refused(with([](auto& a) { a.splits = 2; })));  // without scratch
    EXPECT_TRUE(refused(with([](auto& a) { a.out = nullptr; })));
    if (queue.is_cuda()) continue;
    EXPECT_TRUE(TokenAttention(queue, good).ok());
    index = 2;
    EXPECT_TRUE(refused(TokenAttention(queue, good)));
    index = 0;
  }
}

}  // namespace
}  // namespace gradq::kernels
