#include "lib/kernels/cuda/tile_matmul.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lib/kernels/cuda/tile_matmul_plan.h"
#include "lib/kernels/tile_matmul.h"
#include "tests/kernels/device_memory.h"
#include "tests/kernels/device_tile_product.h"
#include "tests/kernels/tile_problem.h"
#include "tests/kernels/tile_product.h"
#include "tests/simt/emulator.h"

namespace gradq::kernels {
namespace {

using Kind = std::pair<TileEncoding, int>;

constexpr TileMatmulPlan kPlans[] = {{8, 8}, {2, 4}, {4, 8}, {4, 4}, {2, 8}};

template <TileEncoding kEncoding, int kBits>
absl::Status EmulateAs(const TileMatmulPlan& plan, uint32_t seed,
                       const TileMatmulOperands& operands) {
  return WithTileMatmulShape(plan, [&](auto shape) {
    using Shape = decltype(shape);
    EXPECT_EQ(Shape::kRows, plan.rows());
    EXPECT_EQ(Shape::kTokens, plan.tokens());
    const TileView& matrix = operands.matrix;
    const GridShape grid = {.grid_x = (matrix.out_features + plan.rows() - 1) / plan.rows(),
                            .grid_y = (operands.batch + plan.tokens() - 1) / plan.tokens(),
                            .threads = Shape::kThreads,
                            .shared_bytes = Shape::SharedBytes(matrix.outlier_begin != nullptr)};
    return RunGrid(grid, seed, [&](const EmulatedSimt& s) {
      TileMatmulBlock<kEncoding, kBits, Shape>(s, operands);
    });
  });
}

absl::Status EmulateKind(const TileMatmulPlan& plan, uint32_t seed,
                         const TileMatmulOperands& operands) {
  const bool lut = operands.matrix.encoding == TileEncoding::kLut;
  constexpr TileEncoding kLut = TileEncoding::kLut;
  constexpr TileEncoding kAffine = TileEncoding::kAffine;
  switch (operands.matrix.bits) {
    case 2:
      return lut ? EmulateAs<kLut, 2>(plan, seed, operands)
                 : EmulateAs<kAffine, 2>(plan, seed, operands);
    case 3:
      return lut ? EmulateAs<kLut, 3>(plan, seed, operands)
                 : EmulateAs<kAffine, 3>(plan, seed, operands);
    case 4:
      return lut ? EmulateAs<kLut, 4>(plan, seed, operands)
                 : EmulateAs<kAffine, 4>(plan, seed, operands);
    default:
      return EmulateAs<kAffine, 8>(plan, seed, operands);
  }
}

// Around y; a NaN, as a result that nobody wrote would be.
constexpr uint16_t kUntouched = 0x7fff;
constexpr int64_t kMargin = 64;

std::vector<uint16_t> Emulate(const TileMatmulPlan& plan, uint32_t seed, const TileView& matrix,
                              const TileProduct& product) {
  const int64_t count = product.batch * matrix.out_features;
  std::vector<uint16_t> y(count + 2 * kMargin, kUntouched);
  const TileMatmulOperands operands = {matrix,
                                       product.x.data(),
                                       product.bias.empty() ? nullptr : product.bias.data(),
                                       y.data() + kMargin,
                                       static_cast<int>(product.batch),
                                       product.type == FloatType::kBFloat16};
  const absl::Status status = EmulateKind(plan, seed, operands);
  EXPECT_TRUE(status.ok()) << status;
  for (int64_t i = 0; i < kMargin; ++i) {
    EXPECT_EQ(y[i], kUntouched);
    EXPECT_EQ(y[kMargin + count + i], kUntouched);
  }
  return {y.begin() + kMargin, y.begin() + kMargin + count};
}

enum class Machine { kEmulator, kDevice };

class TileMatmulTest : public testing::TestWithParam<std::tuple<Machine, Kind>> {
 protected:
  void SetUp() override {
    if (machine() == Machine::kDevice) SetUpDevice();
  }

  static Machine machine() { return std::get<0>(GetParam()); }
  static TileProblemOptions Options(int64_t out, int64_t in, OutlierKind outliers) {
    const auto [encoding, bits] = std::get<1>(GetParam());
    return {encoding, bits, out, in, in % 3 == 0 ? 48 : 128, outliers};
  }

  // `turn` picks what a small number of runs can't have in all combinations.
  static void Check(const TileProblemOptions& o, const TileProblem& problem, int64_t batch,
                    int turn) {
    const FloatType type = turn % 2 == 0 ? FloatType::kFloat16 : FloatType::kBFloat16;
    const TileMatmulPlan plan = kPlans[turn % std::ssize(kPlans)];
    const uint32_t seed = kEmulatorSeeds[turn / 3 % 4];
    SCOPED_TRACE(testing::Message() << o.out << " x " << o.in << ", batch " << batch
                                    << ", outliers " << static_cast<int>(o.outliers) << ", type "
                                    << static_cast<int>(type) << ", row warps " << plan.row_warps
                                    << ", batch tiles " << plan.batch_tiles << ", seed " << seed);
    const TileProduct product = MakeTileProduct(problem, batch, type, turn / 2 % 2 == 0);
    const std::vector<uint16_t> y = machine() == Machine::kEmulator
                                        ? Emulate(plan, seed, problem.matrix.view(), product)
                                        : RunOnDevice(TileMatmul, problem.matrix, product);
    ASSERT_TRUE(IsProduct(y, product));
  }
};

TEST_P(TileMatmulTest, EqualsExactProduct) {
  std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 1},    {17, 63},   {33, 129},
                                                     {70, 328}, {300, 200}, {20, 4296}};
  std::vector<int64_t> batches = {17, 32, 63, 64, 100};
  if (machine() == Machine::kDevice) {
    shapes.insert(shapes.end(), {{257, 4161}, {1000, 2048}, {2048, 8200}, {4096, 4096}});
    batches.insert(batches.end(), {256, 1024});
  }
  int turn = 0;
  for (const auto& [out, in] : shapes) {
    for (const OutlierKind outliers :
         {OutlierKind::kNone, OutlierKind::kSparse, OutlierKind::kOneRow}) {
      const TileProblemOptions options = Options(out, in, outliers);
      const TileProblem problem = MakeTileProblem(options);
      for (size_t i = 0; i < batches.size(); ++i) {
        ++turn;
        // On the emulator one of them, another one for every problem.
        if (machine() == Machine::kEmulator && turn % batches.size() != turn / batches.size() % 5)
          continue;
        Check(options, problem, batches[i], turn);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(TileMatmulTest, ManyTokens) {
  const int64_t batch = machine() == Machine::kDevice ? 1024 : 256;
  const TileProblemOptions options = Options(35, 96, OutlierKind::kSparse);
  Check(options, MakeTileProblem(options), batch, 0);
}

// In no order of threads does anybody read what is not there yet, in any of the kernel's shapes.
TEST_P(TileMatmulTest, SumsDependOnNeitherOrderOfThreadsNorRun) {
  const TileProblem problem = MakeTileProblem(Options(40, 904, OutlierKind::kSparse));
  const TileProduct product = MakeTileProduct(problem, 37, FloatType::kBFloat16, true);
  if (machine() == Machine::kDevice) {
    ASSERT_TRUE(IsProduct(RunOnDevice(TileMatmul, problem.matrix, product), product));
    return;
  }
  for (const TileMatmulPlan& plan : kPlans) {
    const std::vector<uint16_t> y = Emulate(plan, 0, problem.matrix.view(), product);
    ASSERT_TRUE(IsProduct(y, product)) << plan.row_warps << " " << plan.batch_tiles;
    for (const uint32_t seed : {1u, 3u}) {
      ASSERT_EQ(Emulate(plan, seed, problem.matrix.view(), product), y)
          << plan.row_warps << " " << plan.batch_tiles << " " << seed;
    }
  }
}

// One token's x is not finite in one column: its outputs are not, and all others are right. The
// last columns of a row have padding behind them; the first ones of the next row must not be read
// there.
TEST_P(TileMatmulTest, NonFiniteActivationsStayInTheirToken) {
  for (const int64_t in : {72, 131}) {
    const TileProblem problem = MakeTileProblem(Options(19, in, OutlierKind::kSparse));
    for (const int64_t column : {int64_t{0}, in - 1}) {
      const TileProduct product = MakeTileProduct(
          problem, 33, FloatType::kFloat16, false, [&](int64_t token, int64_t c, float* value) {
            if ((token == 1 || token == 32) && c == column)
              *value = std::numeric_limits<float>::infinity();
          });
      const std::vector<uint16_t> y = machine() == Machine::kDevice
                                          ? RunOnDevice(TileMatmul, problem.matrix, product)
                                          : Emulate({2, 4}, 2, problem.matrix.view(), product);
      ASSERT_TRUE(IsProduct(y, product)) << "column " << column << " of " << in;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TileMatmulTest,
                         testing::Combine(testing::Values(Machine::kEmulator, Machine::kDevice),
                                          testing::ValuesIn(TileKinds())),
                         [](const auto& info) {
                           const bool emulator = std::get<0>(info.param) == Machine::kEmulator;
                           const Kind kind = std::get<1>(info.param);
                           return (emulator ? "emulator_" : "device_") +
                                  NameOf(kind.first, kind.second);
                         });

TEST(TileMatmulPlan, CoversEveryCase) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t out : {1, 1024, 4096, 11008, 14336, 28672, 152064}) {
      for (int64_t batch = 1; batch <= kTileMatmulBatch; ++batch) {
        const TileMatmulPlan plan = PlanTileMatmul(bits, out, batch);
        ASSERT_TRUE(HasTileMatmul(plan.row_warps, plan.batch_tiles));
        ASSERT_EQ(plan.row_warps * plan.split_warps(), kTileMatmulWarps);
        WithTileMatmulShape(plan, [&](auto shape) {
          using Shape = decltype(shape);
          EXPECT_EQ(Shape::kRows, plan.rows());
          EXPECT_EQ(Shape::kTokens, plan.tokens());
          // What a block may have on every GPU since compute capability 8.0.
          EXPECT_LE(Shape::SharedBytes(true), 99 * 1024);
        });
        ASSERT_FALSE(HasFailure());
      }
    }
  }
}

// Few rows: columns are split; many rows and tokens: activations are read as rarely as can be.
TEST(TileMatmulPlan, KeepsMultiprocessorsBusy) {
  EXPECT_GE(PlanTileMatmul(4, 1024, 32).split_warps(), 4);
  EXPECT_GE(PlanTileMatmul(4, 4096, 64).split_warps(), 4);
  EXPECT_EQ(PlanTileMatmul(4, 28672, 1024).row_warps, 8);
  EXPECT_EQ(PlanTileMatmul(4, 14336, 64).tokens(), 64);
}

TEST(TileMatmulEntry, RefusesWrongUse) {
  const TileProblem problem = MakeTileProblem({TileEncoding::kLut, 4, 16, 64});
  std::vector<uint16_t> x((kTileMatmulBatch + 1) * 64);
  std::vector<uint16_t> y((kTileMatmulBatch + 1) * 16);
  TileMatmulArgs args = {FloatType::kFloat16, x.data(), kTileMatmulBatch, nullptr, y.data()};
  const auto code = [&] { return TileMatmul(Queue::Cpu(), problem.matrix.view(), args).code(); };
  EXPECT_EQ(code(), absl::StatusCode::kOk);
  for (const int64_t batch : {int64_t{0}, kTileMatmulBatch + 1}) {
    args.batch = batch;
    EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument) << batch;
  }
}

}  // namespace
}  // namespace gradq::kernels
