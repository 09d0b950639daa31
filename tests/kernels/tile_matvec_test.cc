#include "lib/kernels/cuda/tile_matvec.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lib/kernels/cuda/tile_matvec_plan.h"
#include "lib/kernels/tile_matmul.h"
#include "tests/kernels/device_memory.h"
#include "tests/kernels/device_tile_product.h"
#include "tests/kernels/tile_problem.h"
#include "tests/kernels/tile_product.h"
#include "tests/simt/emulator.h"

namespace gradq::kernels {
namespace {

using Kind = std::pair<TileEncoding, int>;

template <TileEncoding kEncoding, int kBits, class T>
absl::Status EmulateAs(const TileMatvecPlan& plan, uint32_t seed, const TileView& matrix,
                       const TileProduct& product, std::vector<uint16_t>* y) {
  static_assert(sizeof(T) == sizeof(uint16_t));
  const TileMatvecArgs<T> args = {
      matrix, reinterpret_cast<const T*>(product.x.data()),
      product.bias.empty() ? nullptr : reinterpret_cast<const T*>(product.bias.data()),
      reinterpret_cast<T*>(y->data()), static_cast<int>(product.batch)};
  return WithTileMatvecShape<kEncoding, kBits>(plan, [&](auto shape) {
    using Shape = decltype(shape);
    EXPECT_EQ(Shape::kRowTiles, plan.row_tiles);
    EXPECT_EQ(Shape::kBatchTiles, plan.batch_tiles);
    const GridShape grid = {.grid_x = (matrix.row_tiles + plan.row_tiles - 1) / plan.row_tiles,
                            .threads = plan.warps * kWarpLanes,
                            .shared_bytes = Shape::SharedBytes(plan.warps)};
    return RunGrid(grid, seed, [&](const EmulatedSimt& s) {
      TileMatvecBlock<kEncoding, kBits, Shape>(s, args);
    });
  });
}

template <class T>
absl::Status EmulateAs(const TileMatvecPlan& plan, uint32_t seed, const TileView& matrix,
                       const TileProduct& product, std::vector<uint16_t>* y) {
  const bool lut = matrix.encoding == TileEncoding::kLut;
  constexpr TileEncoding kLut = TileEncoding::kLut;
  constexpr TileEncoding kAffine = TileEncoding::kAffine;
  switch (matrix.bits) {
    case 2:
      return lut ? EmulateAs<kLut, 2, T>(plan, seed, matrix, product, y)
                 : EmulateAs<kAffine, 2, T>(plan, seed, matrix, product, y);
    case 3:
      return lut ? EmulateAs<kLut, 3, T>(plan, seed, matrix, product, y)
                 : EmulateAs<kAffine, 3, T>(plan, seed, matrix, product, y);
    case 4:
      return lut ? EmulateAs<kLut, 4, T>(plan, seed, matrix, product, y)
                 : EmulateAs<kAffine, 4, T>(plan, seed, matrix, product, y);
    default:
      return EmulateAs<kAffine, 8, T>(plan, seed, matrix, product, y);
  }
}

constexpr uint16_t kUntouched = 0x7e01;

std::vector<uint16_t> Emulate(const TileMatvecPlan& plan, uint32_t seed, const TileView& matrix,
                              const TileProduct& product) {
  std::vector<uint16_t> y(product.batch * matrix.out_features, kUntouched);
  const absl::Status status = product.type == FloatType::kFloat16
                                  ? EmulateAs<Half>(plan, seed, matrix, product, &y)
                                  : EmulateAs<BFloat16>(plan, seed, matrix, product, &y);
  EXPECT_TRUE(status.ok()) << status;
  return y;
}

enum class Machine { kEmulator, kDevice };

class TileMatvecTest : public testing::TestWithParam<std::tuple<Machine, Kind>> {
 protected:
  void SetUp() override {
    if (machine() == Machine::kDevice) SetUpDevice();
  }

  static Machine machine() { return std::get<0>(GetParam()); }
  static TileProblemOptions Options(int64_t out, int64_t in, OutlierKind outliers) {
    const auto [encoding, bits] = std::get<1>(GetParam());
    return {encoding, bits, out, in, in % 3 == 0 ? 48 : 128, outliers};
  }

  // Every plan gives the same sums for one number of warps, in every order of threads.
  static void CheckEmulated(const TileProblem& problem, const TileProduct& product) {
    const TileView view = problem.matrix.view();
    for (const int warps : {kTileMatvecWarps / 2, kTileMatvecWarps}) {
      std::vector<uint16_t> first;
      for (int row_tiles = 1; row_tiles <= 4; row_tiles *= 2) {
        const int batch_tiles = product.batch > 8 ? 2 : 1;
        if (!HasTileMatvec(view.encoding, view.bits, row_tiles, batch_tiles)) continue;
        const TileMatvecPlan plan = {row_tiles, batch_tiles, warps};
        SCOPED_TRACE(testing::Message() << row_tiles << " row tiles, " << warps << " warps");
        const uint32_t seed = kEmulatorSeeds[(row_tiles + product.batch) % 4];
        const std::vector<uint16_t> y = Emulate(plan, seed, view, product);
        ASSERT_TRUE(IsProduct(y, product));
        if (first.empty()) first = y;
        ASSERT_EQ(y, first);
      }
    }
  }

  static void Check(const TileProblemOptions& o, const TileProblem& problem, int64_t batch,
                    FloatType type, bool bias) {
    SCOPED_TRACE(testing::Message()
                 << o.out << " x " << o.in << ", batch " << batch << ", outliers "
                 << static_cast<int>(o.outliers) << (bias ? ", bias" : "")
                 << (type == FloatType::kFloat16 ? ", fp16" : ", bf16"));
    const TileProduct product = MakeTileProduct(problem, batch, type, bias);
    if (machine() == Machine::kEmulator) {
      CheckEmulated(problem, product);
    } else {
      ASSERT_TRUE(IsProduct(RunOnDevice(TileMatvec, problem.matrix, product), product));
    }
  }
};

TEST_P(TileMatvecTest, EqualsExactProduct) {
  std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 1},    {17, 63}, {33, 129},
                                                     {64, 700}, {5, 264}, {20, 4097}};
  if (machine() == Machine::kDevice) {
    shapes.insert(shapes.end(),
                  {{48, 4097}, {16, 65536 + 8}, {1000, 2048}, {4096, 4096}, {11008, 4096}});
  }
  int turn = 0;
  for (const auto& [out, in] : shapes) {
    for (const OutlierKind outliers :
         {OutlierKind::kNone, OutlierKind::kSparse, OutlierKind::kOneRow}) {
      const TileProblemOptions options = Options(out, in, outliers);
      const TileProblem problem = MakeTileProblem(options);
      std::vector<int64_t> batches = {1 + turn % 8, 9 + turn % 8};
      if (machine() == Machine::kEmulator && in > 4096) batches.erase(batches.begin() + turn % 2);
      if (machine() == Machine::kDevice && out * in < 1 << 20) {
        batches.resize(kTileMatvecBatch);
        for (int64_t b = 0; b < kTileMatvecBatch; ++b) batches[b] = b + 1;
      }
      for (const int64_t batch : batches) {
        ++turn;
        Check(options, problem, batch, turn % 2 == 0 ? FloatType::kFloat16 : FloatType::kBFloat16,
              turn / 2 % 2 == 0);
        if (HasFailure()) return;
      }
    }
  }
}

// fp32 sums of one token as far as they lie below their rounding to fp16: what is left of them
// when a bias takes the rounded result away again.
template <class Run>
std::vector<uint16_t> LowBits(TileProduct product, int64_t token, const Run& run) {
  const int64_t out = std::ssize(product.y) / product.batch;
  product.bias.clear();
  const std::vector<uint16_t> y = run(product);
  for (int64_t r = 0; r < out; ++r) product.bias.push_back(y[token * out + r] ^ 0x8000);
  const std::vector<uint16_t> rest = run(product);
  return {rest.begin() + token * out, rest.begin() + (token + 1) * out};
}

TEST_P(TileMatvecTest, SumsDependOnNeitherThreadsNorPlanNorBatch) {
  constexpr int64_t kOut = 40;
  constexpr int64_t kIn = 2200;
  const TileProblem problem = MakeTileProblem(Options(kOut, kIn, OutlierKind::kSparse));
  const TileView view = problem.matrix.view();
  const TileProduct all = MakeTileProduct(problem, 11, FloatType::kFloat16, false);
  const auto run_with = [&](int row_tiles, uint32_t seed) {
    return [&, row_tiles, seed](const TileProduct& product) {
      if (machine() == Machine::kDevice) return RunOnDevice(TileMatvec, problem.matrix, product);
      const int batch_tiles = product.batch > 8 ? 2 : 1;
      const bool has = HasTileMatvec(view.encoding, view.bits, row_tiles, batch_tiles);
      return Emulate({has ? row_tiles : 1, batch_tiles, 16}, seed, view, product);
    };
  };
  for (const int64_t token : {2, 10}) {
    const std::vector<uint16_t> sums = LowBits(all, token, run_with(1, 0));
    EXPECT_GT(std::count_if(sums.begin(), sums.end(), [](uint16_t b) { return b & 0x7fff; }), 20);
    TileProduct alone = all;
    alone.batch = 1;
    alone.x.assign(all.x.begin() + token * kIn, all.x.begin() + (token + 1) * kIn);
    alone.y.resize(kOut);
    for (const uint32_t seed : kEmulatorSeeds) {
      EXPECT_EQ(LowBits(alone, 0, run_with(1 << seed % 3, seed)), sums) << seed;
      if (token % 4 != static_cast<int64_t>(seed)) continue;
      EXPECT_EQ(LowBits(all, token, run_with(2, seed)), sums) << seed;
    }
  }
}

// x of one token is not finite in one column: all of that token's outputs are not, and no others.
// Columns that padding is next to or that it would read (the first of a run) are among them.
TEST_P(TileMatvecTest, NonFiniteActivationsStayInTheirToken) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const OutlierKind outliers : {OutlierKind::kNone, OutlierKind::kSparse}) {
    const TileProblem problem = MakeTileProblem(Options(19, 4161, outliers));
    for (const int64_t column : {0, 63, 4096, 4160}) {
      for (const float bad : {kInf, std::numeric_limits<float>::quiet_NaN()}) {
        const TileProduct product = MakeTileProduct(problem, 3, FloatType::kFloat16, false,
                                                    [&](int64_t token, int64_t c, float* value) {
                                                      if (token == 1 && c == column) *value = bad;
                                                    });
        const std::vector<uint16_t> y = machine() == Machine::kDevice
                                            ? RunOnDevice(TileMatvec, problem.matrix, product)
                                            : Emulate({1, 1, 8}, 2, problem.matrix.view(), product);
        ASSERT_TRUE(IsProduct(y, product)) << "column " << column;
        // Without outliers at that column infinities keep their sign, padding or not.
        if (outliers != OutlierKind::kNone || std::isnan(bad)) continue;
        for (int64_t r = 0; r < 19; ++r) {
          const double exact = product.y[19 + r];
          const float value = ValueOf(product.type, y[19 + r]);
          ASSERT_TRUE(std::isnan(exact) ? std::isnan(value) : value == exact) << "row " << r;
        }
      }
    }
  }
}

// 0 · x of what fills a group of outliers up must not turn an infinity into NaN.
TEST_P(TileMatvecTest, PaddingOfOutlierGroupsTouchesNoActivation) {
  const std::vector<int32_t> row_ptr = {0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const std::vector<uint16_t> col = {5};
  const std::vector<uint16_t> value = {0x3c00};
  const SparseRows one(row_ptr, col, value, 70);
  TileProblem problem = MakeTileProblem(Options(16, 70, OutlierKind::kNone), nullptr, &one);
  problem.outliers = {{2, 5, 0x3c00}};
  // Weights of exactly 0 times infinity are NaN, rightly; there are none in a random table.
  const TileProduct product =
      MakeTileProduct(problem, 1, FloatType::kFloat16, false, [](int64_t, int64_t c, float* x) {
        if (c == 0) *x = std::numeric_limits<float>::infinity();
      });
  const std::vector<uint16_t> y = machine() == Machine::kDevice
                                      ? RunOnDevice(TileMatvec, problem.matrix, product)
                                      : Emulate({1, 1, 16}, 0, problem.matrix.view(), product);
  for (int64_t r = 0; r < 16; ++r) {
    const float got = ValueOf(product.type, y[r]);
    EXPECT_TRUE(std::isnan(product.y[r]) ? std::isnan(got) : got == product.y[r]) << r;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TileMatvecTest,
                         testing::Combine(testing::Values(Machine::kEmulator, Machine::kDevice),
                                          testing::ValuesIn(TileKinds())),
                         [](const auto& info) {
                           const bool emulator = std::get<0>(info.param) == Machine::kEmulator;
                           const Kind kind = std::get<1>(info.param);
                           return (emulator ? "emulator_" : "device_") +
                                  NameOf(kind.first, kind.second);
                         });

TEST(TileMatvecCpu, EqualsExactProduct) {
  for (const auto& [encoding, bits] : TileKinds()) {
    for (const FloatType type : {FloatType::kFloat16, FloatType::kBFloat16}) {
      const TileProblem problem =
          MakeTileProblem({encoding, bits, 21, 4133, 48, OutlierKind::kSparse});
      const TileProduct product = MakeTileProduct(problem, 3, type, true);
      std::vector<uint16_t> y(product.y.size());
      const TileMatmulArgs args = {type, product.x.data(), 3, product.bias.data(), y.data()};
      ASSERT_TRUE(TileMatvec(Queue::Cpu(), problem.matrix.view(), args).ok());
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_EQ(y[i], BitsOf(type, static_cast<float>(product.y[i])))
            << NameOf(encoding, bits) << " at " << i;
      }
    }
  }
}

TEST(TileMatvecPlan, CoversEveryCase) {
  for (const auto& [encoding, bits] : TileKinds()) {
    for (const int64_t out : {1, 16, 1000, 4096, 8192, 14336, 28672, 152064}) {
      for (int64_t batch = 1; batch <= kTileMatvecBatch; ++batch) {
        for (const int64_t multiprocessors : {1, 16, 108, 132}) {
          const TileMatvecPlan plan = PlanTileMatvec(encoding, bits, out, batch, multiprocessors);
          ASSERT_TRUE(HasTileMatvec(encoding, bits, plan.row_tiles, plan.batch_tiles));
          ASSERT_GE(plan.batch_tiles * 8, batch);
          ASSERT_EQ(plan.warps, PlanTileMatvec(encoding, bits, out, 1, 132).warps)
              << "sums must not depend on the device or the batch";
          WithTileMatvecShape<TileEncoding::kLut, 2>(
              {1, plan.batch_tiles, plan.warps},
              [&](auto shape) { ASSERT_LE(decltype(shape)::SharedBytes(plan.warps), 48 * 1024); });
        }
      }
    }
  }
}

TEST(TileMatvecEntry, RefusesWrongUse) {
  const TileProblem problem = MakeTileProblem({TileEncoding::kLut, 4, 16, 64});
  const TileView view = problem.matrix.view();
  std::vector<uint16_t> x(17 * 64);
  std::vector<uint16_t> y(17 * 16);
  const TileMatmulArgs good = {FloatType::kFloat16, x.data(), 16, nullptr, y.data()};
  const auto refused = [&](const TileView& v, const TileMatmulArgs& args) {
    return TileMatvec(Queue::Cpu(), v, args).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused(view, good));
  for (const int64_t batch : {int64_t{0}, int64_t{-1}, kTileMatvecBatch + 1}) {
    TileMatmulArgs bad = good;
    bad.batch = batch;
    EXPECT_TRUE(refused(view, bad)) << batch;
  }
  TileMatmulArgs bad = good;
  bad.type = FloatType::kFloat32;
  EXPECT_TRUE(refused(view, bad));
  bad = good;
  bad.x = nullptr;
  EXPECT_TRUE(refused(view, bad));
  bad = good;
  bad.y = nullptr;
  EXPECT_TRUE(refused(view, bad));
  EXPECT_TRUE(refused(TileView(), good));
  TileView wide = view;
  wide.bits = 5;
  EXPECT_TRUE(refused(wide, good));
}

}  // namespace
}  // namespace gradq::kernels
