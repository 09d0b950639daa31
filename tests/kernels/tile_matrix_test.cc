#include "lib/kernels/tile_matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <tuple>

#include "lib/kernels/tile_matmul_cpu.h"
#include "tests/kernels/tile_problem.h"

namespace gradq::kernels {
namespace {

// Corner shapes: one row, tiles of rows one short and one over; one column, windows and chunks one
// short and one over; runs of outliers likewise.
std::vector<std::pair<int64_t, int64_t>> Shapes(int bits) {
  const int64_t chunk = ChunkColumns(bits);
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (const int64_t out : {1, 15, 16, 17}) {
    for (const int64_t in :
         std::set<int64_t>{1, 15, 16, 17, 63, 64, 65, chunk - 1, chunk, chunk + 1, 3 * chunk - 7})
      shapes.emplace_back(out, in);
  }
  for (const int64_t in : {4095, 4096, 4097}) shapes.emplace_back(18, in);
  shapes.emplace_back(3, 65537);
  return shapes;
}

class TileMatrixTest : public testing::TestWithParam<std::pair<TileEncoding, int>> {
 protected:
  // Calls check(options, problem) for every shape, group size and kind of outliers.
  template <typename Check>
  void ForProblems(const Check& check) {
    const auto [encoding, bits] = GetParam();
    for (const auto& [out, in] : Shapes(bits)) {
      const int64_t rounded = (in + 15) / 16 * 16;
      const std::set<int64_t> affine_groups = {16, 48, 64, 128, rounded};
      const std::set<int64_t> groups =
          encoding == TileEncoding::kAffine ? affine_groups : std::set<int64_t>{128};
      for (const int64_t group : groups) {
        if (out != 17 && group != 48 && group != 128) continue;
        for (const OutlierKind kind :
             {OutlierKind::kNone, OutlierKind::kSparse, OutlierKind::kOneRow}) {
          if (kind != OutlierKind::kSparse && out != 16 && out != 18) continue;
          TileProblemOptions options{encoding, bits, out, in, group, kind};
          SCOPED_TRACE(testing::Message() << out << " x " << in << ", groups of " << group
                                          << ", outliers " << static_cast<int>(kind));
          check(options, MakeTileProblem(options));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
};

TEST_P(TileMatrixTest, EveryWeightIsWhereTheLayoutSays) {
  ForProblems([](const TileProblemOptions& o, const TileProblem& problem) {
    const TileView view = problem.matrix.view();
    std::vector<float> weights(o.in);
    std::vector<float> outliers(o.in);
    std::vector<float> expected(o.in);
    auto next = problem.outliers.begin();
    for (int64_t r = 0; r < o.out; ++r) {
      DecodeTileRow(view, r, weights.data(), outliers.data());
      ASSERT_EQ(
          0, std::memcmp(weights.data(), problem.weights.data() + r * o.in, o.in * sizeof(float)))
          << "row " << r;
      std::fill(expected.begin(), expected.end(), 0.f);
      for (; next != problem.outliers.end() && next->row == r; ++next)
        expected[next->column] = Float16ToFloat(next->value);
      ASSERT_EQ(outliers, expected) << "row " << r;
    }
  });
}

// Bits of codes in all places that belong to no weight, rows of tables and scales that belong to no
// row.
TEST_P(TileMatrixTest, PaddingIsZero) {
  ForProblems([](const TileProblemOptions& o, const TileProblem& problem) {
    // The same matrix with all codes set has ones in just the places of its weights.
    const TileMatrix& matrix = problem.matrix;
    const int64_t words = (o.in * o.bits + 31) / 32;
    const std::vector<uint32_t> ones(o.out * words, ~0u);
    const int64_t groups = (o.in + o.group_size - 1) / o.group_size;
    const TileMatrix mask =
        o.encoding == TileEncoding::kLut
            ? TileMatrix::FromLut(ones, std::vector<uint16_t>(o.out << o.bits, 0xffff), {}, o.out,
                                  o.in, o.bits, nullptr)
            : TileMatrix::FromAffine(ones, std::vector<uint16_t>(o.out * groups, 0xffff),
                                     std::vector<uint8_t>(o.out * groups, 255), {}, o.out, o.in,
                                     o.bits, o.group_size, nullptr);
    ASSERT_EQ(mask.codes().size(), matrix.codes().size());
    int64_t set = 0;
    for (size_t i = 0; i < mask.codes().size(); ++i) {
      for (int w = 0; w < 4; ++w) {
        set += std::popcount(mask.codes()[i].word[w]);
        ASSERT_EQ(matrix.codes()[i].word[w] & ~mask.codes()[i].word[w], 0u);
      }
    }
    ASSERT_EQ(set, o.out * o.in * o.bits);
    const auto tail_is_zero = [&](std::span<const uint32_t> words, int64_t used) {
      for (size_t i = used; i < words.size(); ++i) ASSERT_EQ(words[i], 0u);
    };
    if (o.encoding == TileEncoding::kLut) {
      ASSERT_EQ(matrix.tables().size(), (o.out + 15) / 16 * 16 * (1 << o.bits) / 2);
      tail_is_zero(matrix.tables(), o.out * (1 << o.bits) / 2);
    } else {
      for (int64_t i = 0; i < std::ssize(matrix.scales()); ++i) {
        const int64_t row = i / (groups * kMmaRows) * kMmaRows + i % kMmaRows;
        ASSERT_EQ(matrix.scales()[i] == 0, row >= o.out) << i;
      }
    }
  });
}

TEST_P(TileMatrixTest, OutliersAreCompleteAndInOrder) {
  ForProblems([](const TileProblemOptions& o, const TileProblem& problem) {
    const TileView view = problem.matrix.view();
    if (problem.outliers.empty()) {
      ASSERT_EQ(view.outlier_begin, nullptr);
      return;
    }
    const int64_t lists = view.row_tiles * view.runs;
    ASSERT_EQ(std::ssize(problem.matrix.outlier_begin()),
              lists + 1 + view.row_tiles * WindowsOf(view) + 1);
    ASSERT_EQ(view.outlier_begin[0], 0u);
    ASSERT_EQ(int64_t{view.outlier_begin[lists]} * kOutlierGroup,
              std::ssize(problem.matrix.outliers()));
    std::vector<std::tuple<int64_t, int64_t, uint16_t>> found;
    for (int64_t list = 0; list < lists; ++list) {
      std::tuple<int64_t, int64_t, int64_t> last = {-1, -1, -1};
      bool padding = false;
      int64_t left = int64_t{view.outlier_begin[list + 1] - view.outlier_begin[list]} * 16;
      const uint32_t* entry = view.outliers + int64_t{view.outlier_begin[list]} * 16;
      for (; left > 0; --left, ++entry) {
        padding |= *entry == 0;
        if (padding) {
          ASSERT_EQ(*entry, 0u);
          ASSERT_LT(left, 16) << "a group of padding alone";
          continue;
        }
        const int64_t row = *entry >> 12 & 15;
        const int64_t column = *entry & 0xfff;
        const auto now = std::make_tuple(column / kWindowColumns, row, column);
        ASSERT_LT(last, now);
        last = now;
        found.emplace_back(list / view.runs * 16 + row, list % view.runs * 4096 + column,
                           *entry >> 16);
      }
    }
    std::sort(found.begin(), found.end());
    ASSERT_EQ(found.size(), problem.outliers.size());
    for (size_t i = 0; i < found.size(); ++i) {
      const TileOutlier& expected = problem.outliers[i];
      ASSERT_EQ(found[i], std::make_tuple(expected.row, expected.column, expected.value));
    }
    ASSERT_LE(o.in, view.runs * kOutlierRun);
  });
}

TEST_P(TileMatrixTest, OutliersOfAWindow) {
  ForProblems([](const TileProblemOptions& o, const TileProblem& problem) {
    if (problem.outliers.empty()) return;
    const TileView view = problem.matrix.view();
    const uint32_t* starts = OutlierWindows(view);
    const int64_t windows = WindowsOf(view);
    std::vector<int64_t> counts(view.row_tiles * windows);
    for (const TileOutlier& outlier : problem.outliers)
      ++counts[outlier.row / kMmaRows * windows + outlier.column / kWindowColumns];
    ASSERT_EQ(starts[0], 0u);
    ASSERT_EQ(starts[counts.size()], problem.matrix.outliers().size());
    for (int64_t i = 0; i < std::ssize(counts); ++i) {
      int64_t left = counts[i];
      for (uint32_t at = starts[i]; at < starts[i + 1]; ++at) {
        const uint32_t entry = view.outliers[at];
        if (left-- <= 0) {
          ASSERT_EQ(entry, 0u) << "padding behind the entries of window " << i;
          continue;
        }
        const int64_t column = i % windows * kWindowColumns;
        ASSERT_EQ((entry & 0xfff) / kWindowColumns, column % kOutlierRun / kWindowColumns);
      }
      ASSERT_LE(left, 0) << "window " << i;
    }
    ASSERT_EQ(o.in, view.in_features);
  });
}

TEST_P(TileMatrixTest, BytesAreThoseOfTheArraysAndPredicted) {
  ForProblems([](const TileProblemOptions& o, const TileProblem& problem) {
    const TileMatrix& m = problem.matrix;
    ASSERT_EQ(m.bytes(),
              static_cast<int64_t>(m.codes().size_bytes() + m.tables().size_bytes() +
                                   m.scales().size_bytes() + m.outlier_begin().size_bytes() +
                                   m.outliers().size_bytes()));
    const int64_t predicted = TileMatrixBytes(o.encoding, o.bits, o.out, o.in, o.group_size,
                                              std::ssize(problem.outliers));
    const TileView view = m.view();
    ASSERT_LE(m.bytes(), predicted);
    ASSERT_LE(predicted, m.bytes() + view.row_tiles * view.runs * 15 * 4);
  });
}

TEST_P(TileMatrixTest, SameFromAnyNumberOfThreads) {
  const auto [encoding, bits] = GetParam();
  const TileProblemOptions options{encoding, bits, 70, 700, 48, OutlierKind::kSparse};
  ThreadPool pool(3);
  const TileProblem one = MakeTileProblem(options);
  const TileProblem three = MakeTileProblem(options, &pool);
  EXPECT_EQ(0, std::memcmp(one.matrix.codes().data(), three.matrix.codes().data(),
                           one.matrix.codes().size_bytes()));
  EXPECT_TRUE(std::ranges::equal(one.matrix.outliers(), three.matrix.outliers()));
  EXPECT_TRUE(std::ranges::equal(one.matrix.outlier_begin(), three.matrix.outlier_begin()));
}

INSTANTIATE_TEST_SUITE_P(Kinds, TileMatrixTest, testing::ValuesIn(TileKinds()),
                         [](const auto& info) {
                           return NameOf(info.param.first, info.param.second);
                         });

TEST(Float16, RoundsToNearestEvenAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Float16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Float16ToFloat(FloatToFloat16(value))));
      continue;
    }
    ASSERT_EQ(FloatToFloat16(value), bits);
    if ((bits & 0x7fff) >= 0x7bff) continue;
    // Halfway to the next larger magnitude: ties to even, one float beyond: up.
    const float next = Float16ToFloat(static_cast<uint16_t>(bits + 1));
    const float middle = value + (next - value) / 2;
    ASSERT_EQ(FloatToFloat16(middle), bits + (bits & 1));
    ASSERT_EQ(FloatToFloat16(std::nextafter(middle, next)), bits + 1);
    ASSERT_EQ(FloatToFloat16(std::nextafter(middle, value)), bits);
  }
  EXPECT_EQ(FloatToFloat16(65520.f), 0x7c00);
  EXPECT_EQ(FloatToFloat16(65519.f), 0x7bff);
  EXPECT_EQ(FloatToFloat16(-INFINITY), 0xfc00);
}

}  // namespace
}  // namespace gradq::kernels
