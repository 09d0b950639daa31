#include "lib/kernels/cuda/decode_fragment.cuh"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "lib/kernels/float16.h"
#include "tests/kernels/tile_problem.h"
#include "tests/simt/emulator.h"

namespace gradq::kernels {
namespace {

// Words of a lane's window, out of the chunk's vectors.
std::vector<uint32_t> LaneWindow(const TileView& view, int64_t tile, int64_t window, int lane) {
  const int windows = WindowsPerChunk(view.bits);
  const Words4* chunk = view.codes + (tile * view.chunks + window / windows) *
                                         VectorsPerChunk(view.bits) * kWarpLanes;
  std::vector<uint32_t> words;
  for (int64_t w = window % windows * view.bits; std::ssize(words) < view.bits; ++w)
    words.push_back(chunk[w / 4 * kWarpLanes + lane].word[w % 4]);
  return words;
}

// What register `r` of mma number `step` of the lane must hold: a pair of weights, rounded to fp16
// once. Nothing is asked of rows and columns of the padding.
struct Expected {
  uint32_t bits = 0;
  uint32_t mask = 0;
};
Expected ExpectedRegister(const TileProblem& problem, int64_t tile, int64_t window, int lane,
                          int step, int r) {
  const TileView view = problem.matrix.view();
  const int64_t row = tile * kMmaRows + lane / 4 + (r % 2 == 1 ? 8 : 0);
  const int64_t first = window * kWindowColumns + lane % 4 * 16 + 4 * step + (r >= 2 ? 2 : 0);
  Expected expected;
  for (int i = 0; i < 2; ++i) {
    if (row >= view.out_features || first + i >= view.in_features) continue;
    const float weight = problem.weights[row * view.in_features + first + i];
    expected.bits |= uint32_t{FloatToFloat16(weight)} << (16 * i);
    expected.mask |= 0xffffu << (16 * i);
  }
  return expected;
}

template <TileEncoding kEncoding, int kBits>
void CheckEveryWindow(const TileProblem& problem) {
  const TileView view = problem.matrix.view();
  const EmulatedSimt s(nullptr, 0);
  const int64_t windows = view.chunks * WindowsPerChunk(kBits);
  for (int64_t tile = 0; tile < view.row_tiles; ++tile) {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      TileDecoder<EmulatedSimt, kEncoding, kBits> decoder;
      decoder.Load(s, view, tile, lane);
      for (int64_t window = 0; window < windows; ++window) {
        const std::vector<uint32_t> words = LaneWindow(view, tile, window, lane);
        WindowFragments decoded;
        decoder.Decode(s, view, tile, lane, window * kWindowColumns + lane % 4 * kLaneColumns,
                       words.data(), &decoded);
        for (int step = 0; step < 4; ++step) {
          for (int r = 0; r < 4; ++r) {
            const Expected expected = ExpectedRegister(problem, tile, window, lane, step, r);
            ASSERT_EQ(decoded.a[step][r] & expected.mask, expected.bits)
                << "tile " << tile << ", lane " << lane << ", window " << window << ", mma " << step
                << ", register " << r;
          }
        }
      }
    }
  }
}

void CheckKind(TileEncoding encoding, int bits, const TileProblem& problem) {
  const bool lut = encoding == TileEncoding::kLut;
  if (bits == 2) {
    lut ? CheckEveryWindow<TileEncoding::kLut, 2>(problem)
        : CheckEveryWindow<TileEncoding::kAffine, 2>(problem);
  } else if (bits == 3) {
    lut ? CheckEveryWindow<TileEncoding::kLut, 3>(problem)
        : CheckEveryWindow<TileEncoding::kAffine, 3>(problem);
  } else if (bits == 4) {
    lut ? CheckEveryWindow<TileEncoding::kLut, 4>(problem)
        : CheckEveryWindow<TileEncoding::kAffine, 4>(problem);
  } else {
    CheckEveryWindow<TileEncoding::kAffine, 8>(problem);
  }
}

class DecodeFragmentTest : public testing::TestWithParam<std::pair<TileEncoding, int>> {};

// Tables have negative entries, so a selector whose top bit reached prmt would show.
TEST_P(DecodeFragmentTest, RegistersAreThoseOfTheMma) {
  const auto [encoding, bits] = GetParam();
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1}, {15, 16}, {17, 65}, {33, 700}, {16, 1024}};
  for (const auto& [out, in] : shapes) {
    for (const int64_t group : {16, 48, 128}) {
      if (encoding == TileEncoding::kLut && group != 128) continue;
      SCOPED_TRACE(testing::Message() << out << " x " << in << ", groups of " << group);
      CheckKind(encoding, bits, MakeTileProblem({encoding, bits, out, in, group}));
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DecodeFragmentTest, testing::ValuesIn(TileKinds()),
                         [](const auto& info) {
                           return NameOf(info.param.first, info.param.second);
                         });

}  // namespace
}  // namespace gradq::kernels
