// The kernels of LNQ on row tiles: SIMD against the plain loops, coordinate descent never raises
// the objective, and the published codebook and assignment steps against a golden worked out in
// fp64.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "hwy/targets.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/kernels/coordinate_descent.h"
#include "lib/kernels/error_feedback.h"
#include "lib/solvers/codebook_step.h"
#include "tests/solvers/test_problem.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

using kernels::AlignedFloats;
using kernels::kTileRows;

// A tile with its own storage, rounded to the nearest codewords.
struct TestTile {
  TestTile(const std::vector<float>& weights, const std::vector<float>& tables, int64_t columns,
           int levels)
      : columns(columns),
        weight(columns * kTileRows),
        error(columns * kTileRows),
        table(levels * kTileRows),
        midpoint(levels * kTileRows),
        codes(columns * kTileRows) {
    std::copy(weights.begin(), weights.end(), weight.data());
    std::copy(tables.begin(), tables.end(), table.data());
    view = {weight.data(), error.data(), levels, table.data(), midpoint.data()};
    SetMidpoints();
    kernels::RoundToNearest(columns, view, nullptr, codes.data());
  }

  void SetMidpoints() {
    for (int64_t i = 0; i < (view.levels - 1) * kTileRows; ++i) {
      midpoint.data()[i] = 0.5f * (table.data()[i] + table.data()[i + kTileRows]);
    }
  }

  // Keeps about one weight in eight apart.
  void SetApart() {
    active = AlignedFloats(columns * kTileRows);
    const std::vector<float> random = Pseudorandoms(columns * kTileRows, 77);
    for (int64_t i = 0; i < columns * kTileRows; ++i)
      active.data()[i] = random[i] > 0.75f ? 0.0f : 1.0f;
    view.active = active.data();
    kernels::RoundToNearest(columns, view, nullptr, codes.data());
  }

  int64_t columns;
  AlignedFloats weight, error, table, midpoint, active;
  std::vector<uint8_t> codes;
  kernels::RowTile view;
};

std::vector<float> Tables(int levels, uint32_t seed) {
  std::vector<float> tables = Pseudorandoms(levels * kTileRows, seed);
  for (int row = 0; row < kTileRows; ++row) {
    std::vector<float> sorted;
    for (int q = 0; q < levels; ++q) sorted.push_back(tables[q * kTileRows + row]);
    std::sort(sorted.begin(), sorted.end());
    for (int q = 0; q < levels; ++q) tables[q * kTileRows + row] = sorted[q];
  }
  return tables;
}

class RowTileTest : public testing::TestWithParam<std::tuple<int64_t, int>> {
 protected:
  int64_t columns() const { return std::get<0>(GetParam()); }
  int levels() const { return std::get<1>(GetParam()); }
  TestTile Tile() const {
    return TestTile(Pseudorandoms(columns() * kTileRows, 1), Tables(levels(), 2), columns(),
                    levels());
  }
  TestTile TileWithApart() const {
    TestTile tile = Tile();
    tile.SetApart();
    return tile;
  }
  void ExpectNoErrorApart(const TestTile& tile) const {
    for (int64_t i = 0; i < columns() * kTileRows; ++i) {
      if (tile.active.data()[i] == 0.0f) {
        ASSERT_EQ(tile.error.data()[i], 0.0f) << i;
      }
    }
  }
  at::Tensor Matrix() const {
    return MakeProblem({"", 1, columns(), 1, columns() + 5}, 2).fisher_blocks[0];
  }
  std::vector<float> Inverse(const at::Tensor& h) const {
    std::vector<float> inverse(columns());
    for (int64_t j = 0; j < columns(); ++j)
      inverse[j] = 1.0f / h.const_data_ptr<float>()[j * columns() + j];
    return inverse;
  }
  // Fused multiply-adds in both, else the products differ in their last bits.
  static bool BitsComparable() {
    return (hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL)) != 0;
  }
};

TEST_P(RowTileTest, DescentEqualsThePlainLoopsAndNeverRaises) {
  const at::Tensor h = Matrix();
  const kernels::PanelMatrix panels(h.const_data_ptr<float>(), columns());
  const std::vector<float> inverse = Inverse(h);
  TestTile simd = Tile(), plain = Tile();
  double before[kTileRows], after[kTileRows];
  kernels::ExactQuadraticForms(panels, simd.error.data(), before);
  for (int cycle = 0; cycle < 3; ++cycle) {
    float fell[kTileRows], plain_fell[kTileRows];
    const bool moved = kernels::CoordinateDescentCycle(panels, inverse.data(), simd.view, fell);
    const bool plain_moved =
        kernels::reference::CoordinateDescentCycle(panels, inverse.data(), plain.view, plain_fell);
    kernels::ExactQuadraticForms(panels, simd.error.data(), after);
    for (int row = 0; row < kTileRows; ++row) {
      EXPECT_LE(after[row], before[row] * (1 + 1e-5) + 1e-9) << "row " << row;
      EXPECT_NEAR(before[row] - after[row], fell[row], 1e-4 * (before[row] + 1e-3));
    }
    std::copy_n(after, kTileRows, before);
    if (!BitsComparable()) continue;
    EXPECT_EQ(moved, plain_moved);
    EXPECT_EQ(std::memcmp(simd.error.data(), plain.error.data(), columns() * kTileRows * 4), 0);
    EXPECT_EQ(std::memcmp(fell, plain_fell, sizeof(fell)), 0);
  }
}

TEST_P(RowTileTest, FeedbackEqualsThePlainLoops) {
  if (!BitsComparable()) GTEST_SKIP() << "no fused multiply-add";
  const at::Tensor h = Matrix();
  std::vector<int32_t> order(columns());
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.begin() + columns() / 2);
  std::vector<float> factor;
  ThreadPool pool(2);
  ASSERT_TRUE(
      kernels::FeedbackFactor(h.const_data_ptr<float>(), columns(), 0.1, order, &pool, &factor));
  const kernels::PanelMatrix feedback(factor.data(), columns());
  TestTile simd = Tile(), plain = Tile();
  kernels::ErrorFeedbackRounding(feedback, order.data(), simd.view);
  kernels::reference::ErrorFeedbackRounding(feedback, order.data(), plain.view);
  EXPECT_EQ(std::memcmp(simd.error.data(), plain.error.data(), columns() * kTileRows * 4), 0);
}

TEST_P(RowTileTest, FormsEqualTheDefinition) {
  const at::Tensor h = Matrix();
  const kernels::PanelMatrix panels(h.const_data_ptr<float>(), columns());
  TestTile tile = Tile();
  double fast[kTileRows], exact[kTileRows];
  kernels::QuadraticForms(panels, tile.error.data(), fast);
  kernels::ExactQuadraticForms(panels, tile.error.data(), exact);
  for (int row = 0; row < kTileRows; ++row) {
    std::vector<float> error(columns()), zero(columns(), 0.0f);
    for (int64_t j = 0; j < columns(); ++j) error[j] = tile.error.data()[j * kTileRows + row];
    const double form = PlainForm(h.const_data_ptr<float>(), columns(), error.data(), zero.data());
    EXPECT_NEAR(exact[row], form, 1e-12 * form);
    EXPECT_NEAR(fast[row], form, 1e-5 * form);
  }
}

TEST_P(RowTileTest, WeightsApartHaveNoErrorAndTheRestDescends) {
  const at::Tensor h = Matrix();
  const kernels::PanelMatrix panels(h.const_data_ptr<float>(), columns());
  const std::vector<float> inverse = Inverse(h);
  TestTile simd = TileWithApart(), plain = TileWithApart();
  ExpectNoErrorApart(simd);
  double before[kTileRows], after[kTileRows];
  kernels::ExactQuadraticForms(panels, simd.error.data(), before);
  kernels::CoordinateDescentCycle(panels, inverse.data(), simd.view, nullptr);
  kernels::reference::CoordinateDescentCycle(panels, inverse.data(), plain.view, nullptr);
  ExpectNoErrorApart(simd);
  kernels::ExactQuadraticForms(panels, simd.error.data(), after);
  for (int row = 0; row < kTileRows; ++row) EXPECT_LE(after[row], before[row] * (1 + 1e-5) + 1e-9);
  if (!BitsComparable()) return;
  EXPECT_EQ(std::memcmp(simd.error.data(), plain.error.data(), columns() * kTileRows * 4), 0);

  std::vector<int32_t> order(columns());
  std::iota(order.begin(), order.end(), 0);
  std::vector<float> factor;
  ThreadPool pool(2);
  ASSERT_TRUE(
      kernels::FeedbackFactor(h.const_data_ptr<float>(), columns(), 0.1, order, &pool, &factor));
  const kernels::PanelMatrix feedback(factor.data(), columns());
  kernels::ErrorFeedbackRounding(feedback, order.data(), simd.view);
  kernels::reference::ErrorFeedbackRounding(feedback, order.data(), plain.view);
  ExpectNoErrorApart(simd);
  EXPECT_EQ(std::memcmp(simd.error.data(), plain.error.data(), columns() * kTileRows * 4), 0);
}

// The factor, multiplied out.
TEST_P(RowTileTest, FeedbackFactorIsUnitUpperAndReproducesH) {
  const at::Tensor matrix = Matrix();
  const float* h = matrix.const_data_ptr<float>();
  const int64_t n = columns();
  std::vector<int32_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>((i * 7 + 3) % n);
  std::sort(order.begin(), order.end());
  if (n % 7 != 0) {
    for (int64_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>(i * 7 % n);
  }
  std::vector<float> u;
  ThreadPool pool(1);
  ASSERT_TRUE(kernels::FeedbackFactor(h, n, 0.0, order, &pool, &u));
  // D by back substitution from the last diagonal entry upwards.
  std::vector<double> d(n);
  double worst = 0.0, scale = 0.0;
  for (int64_t i = n - 1; i >= 0; --i) {
    EXPECT_EQ(u[i * n + i], 1.0f);
    for (int64_t j = 0; j < i; ++j) EXPECT_EQ(u[i * n + j], 0.0f);
    d[i] = h[order[i] * n + order[i]];
    for (int64_t k = i + 1; k < n; ++k)
      d[i] -= static_cast<double>(u[i * n + k]) * u[i * n + k] * d[k];
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double sum = 0.0;
      for (int64_t k = j; k < n; ++k)
        sum += static_cast<double>(u[i * n + k]) * d[k] * u[j * n + k];
      worst = std::max(worst, std::abs(sum - h[order[i] * n + order[j]]));
      scale = std::max(scale, static_cast<double>(std::abs(h[order[i] * n + order[j]])));
    }
  }
  EXPECT_LT(worst, 1e-5 * scale);
}

// Every vector width the build holds and the machine can run, not only the widest.
TEST_P(RowTileTest, AllVectorWidthsDescendAlike) {
  const at::Tensor h = Matrix();
  const kernels::PanelMatrix panels(h.const_data_ptr<float>(), columns());
  const std::vector<float> inverse = Inverse(h);
  TestTile plain = Tile();
  kernels::reference::CoordinateDescentCycle(panels, inverse.data(), plain.view, nullptr);
  double expected[kTileRows], forms[kTileRows];
  kernels::ExactQuadraticForms(panels, plain.error.data(), expected);
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (const int64_t target : targets) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    TestTile tile = Tile();
    kernels::CoordinateDescentCycle(panels, inverse.data(), tile.view, nullptr);
    kernels::ExactQuadraticForms(panels, tile.error.data(), forms);
    // Targets without fused multiply-add may round a near tie the other way.
    for (int row = 0; row < kTileRows; ++row) {
      EXPECT_NEAR(forms[row], expected[row], 1e-2 * expected[row] + 1e-6)
          << hwy::TargetName(target);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

INSTANTIATE_TEST_SUITE_P(Shapes, RowTileTest,
                         testing::Combine(testing::Values<int64_t>(1, 11, 12, 33, 100, 130),
                                          testing::Values(2, 4, 8, 16, 32, 256)));

TEST(PublishedSteps, MatchTheFormulasFromOneSharedStart) {
  const GoldenFile golden(std::string(GRADQ_GOLDEN) + "/solvers/published.safetensors");
  const at::Tensor h = golden.Get("h"), w = golden.Get("w");
  const int64_t rows = w.size(0), columns = w.size(1);
  constexpr int kLevels = 8, kCycles = 4;
  const float* weight = w.const_data_ptr<float>();
  std::vector<float> weights(columns * kTileRows, 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < columns; ++j) weights[j * kTileRows + row] = weight[row * columns + j];
  }
  TestTile tile(weights, Tables(kLevels, 9), columns, kLevels);
  const at::Tensor start = golden.Get("codes/0");
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = j * kTileRows + row;
      tile.codes[at] = static_cast<uint8_t>(start.const_data_ptr<float>()[row * columns + j]);
      tile.error.data()[at] = tile.table.data()[tile.codes[at] * kTileRows + row] - weights[at];
    }
  }
  const kernels::PanelMatrix panels(h.const_data_ptr<float>(), columns);
  std::vector<float> inverse(columns);
  for (int64_t j = 0; j < columns; ++j)
    inverse[j] = 1.0f / h.const_data_ptr<float>()[j * columns + j];
  RowCodebookStep step(columns, kLevels);
  for (int update = 0; update < 3; ++update) {
    if (update > 0) {
      for (int cycle = 0; cycle < kCycles; ++cycle) {
        kernels::CoordinateDescentCycle(panels, inverse.data(), tile.view, nullptr);
      }
      std::vector<float> target(columns * kTileRows);
      AlignedFloats aligned(columns * kTileRows);
      for (int64_t i = 0; i < columns * kTileRows; ++i)
        aligned.data()[i] = weights[i] + tile.error.data()[i];
      kernels::RoundToNearest(columns, tile.view, aligned.data(), tile.codes.data());
    }
    for (int row = 0; row < rows; ++row) {
      step.Update(h.const_data_ptr<float>(), row, tile.weight.data(), tile.codes.data(),
                  CodebookRidge::kPublished, tile.error.data(), tile.table.data());
    }
    tile.SetMidpoints();
    const at::Tensor expected = golden.Get(StrCat("weights/", update));
    const at::Tensor objective = golden.Get(StrCat("objective/", update));
    double forms[kTileRows];
    kernels::ExactQuadraticForms(panels, tile.error.data(), forms);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t at = j * kTileRows + row;
        EXPECT_NEAR(tile.error.data()[at] + weights[at],
                    expected.const_data_ptr<float>()[row * columns + j], 1e-4)
            << "update " << update << ", row " << row << ", column " << j;
      }
      EXPECT_NEAR(forms[row], objective.const_data_ptr<float>()[row], 1e-4 * forms[row]);
    }
    // The assignment step starts from codes in the order of the sorted table.
    AlignedFloats aligned(columns * kTileRows);
    for (int64_t i = 0; i < columns * kTileRows; ++i)
      aligned.data()[i] = weights[i] + tile.error.data()[i];
    kernels::RoundToNearest(columns, tile.view, aligned.data(), tile.codes.data());
  }
}

// No codebook of the same assignment is better; weights kept apart don't count.
class CodebookStepTest : public testing::TestWithParam<bool> {};

TEST_P(CodebookStepTest, MinimisesTheObjectiveOverCodebooks) {
  constexpr int64_t kColumns = 130;
  constexpr int kLevels = 4;
  const at::Tensor h = MakeProblem({"", 1, kColumns, 1, 300}, 2).fisher_blocks[0];
  TestTile tile(Pseudorandoms(kColumns * kTileRows, 4), Tables(kLevels, 5), kColumns, kLevels);
  if (GetParam()) tile.SetApart();
  const auto counts = [&](int64_t i) { return !GetParam() || tile.active.data()[i] != 0.0f; };
  RowCodebookStep step(kColumns, kLevels);
  const kernels::PanelMatrix panels(h.const_data_ptr<float>(), kColumns);
  double before[kTileRows], after[kTileRows], moved[kTileRows];
  kernels::ExactQuadraticForms(panels, tile.error.data(), before);
  for (int row = 0; row < kTileRows; ++row) {
    step.Update(h.const_data_ptr<float>(), row, tile.weight.data(), tile.codes.data(),
                CodebookRidge::kRelative, tile.error.data(), tile.table.data(), tile.view.active);
  }
  kernels::ExactQuadraticForms(panels, tile.error.data(), after);
  for (int row = 0; row < kTileRows; ++row) EXPECT_LT(after[row], before[row]);
  // A minimum: no codeword can be moved either way.
  for (int q = 0; q < kLevels; ++q) {
    for (const float shift : {-1e-3f, 1e-3f}) {
      AlignedFloats error(kColumns * kTileRows);
      for (int64_t i = 0; i < kColumns * kTileRows; ++i) {
        ASSERT_TRUE(counts(i) || tile.error.data()[i] == 0.0f);
        error.data()[i] = tile.error.data()[i] + (counts(i) && tile.codes[i] == q ? shift : 0.0f);
      }
      kernels::ExactQuadraticForms(panels, error.data(), moved);
      for (int row = 0; row < kTileRows; ++row) EXPECT_GE(moved[row], after[row] * (1 - 1e-9)) << q;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Apart, CodebookStepTest, testing::Bool());

TEST(StoreRowTest, StoredTableIsAscendingWithoutUnusedEntries) {
  const std::vector<float> table = {-1.0f, -0.0f, 0.0f, 0.5f, 0.5f, 2.0f, 3.0f, 4.0f};
  const std::vector<uint8_t> codes = {5, 1, 2, 4, 3, 0};
  std::vector<uint16_t> lut(8);
  std::vector<uint8_t> stored(6);
  StoreRow(table, codes, lut, stored);
  EXPECT_EQ(
      lut, (std::vector<uint16_t>{0xbc00, 0x0000, 0x3800, 0x4000, 0x4000, 0x4000, 0x4000, 0x4000}));
  EXPECT_EQ(stored, (std::vector<uint8_t>{3, 1, 1, 2, 2, 0}));
}

TEST(AssignNearestTest, TiesTakeTheLowerCodeword) {
  const std::vector<float> table = {0.0f, 1.0f, 2.0f, 2.0f},
                           weights = {0.5f, 1.5f, -3.0f, 9.0f, 0.51f};
  std::vector<uint8_t> codes(5);
  AssignNearest(weights, table, codes);
  EXPECT_EQ(codes, (std::vector<uint8_t>{0, 1, 0, 3, 1}));
}

}  // namespace
}  // namespace gradq
