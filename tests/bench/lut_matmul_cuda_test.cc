// The parts of lut_matmul_cuda that need no device.

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/kernels/float16.h"
#include "lib/kernels/tile_matmul.h"
#include "tests/bench/layer_shapes_cuda.h"
#include "tests/bench/path_table_cuda.h"
#include "tests/bench/product_bench_cuda.h"
#include "tests/bench/product_rows_cuda.h"
#include "tests/bench/random_linear_cuda.h"

namespace gradq {
namespace {

using kernels::FloatType;
using kernels::Queue;
using kernels::TileEncoding;
using kernels::TileView;
using ::testing::HasSubstr;

TEST(LayerShapes, ARegularExpressionPicksThem) {
  const auto bar = MatchShapes("^14336x4096 ");
  ASSERT_TRUE(bar.ok());
  ASSERT_EQ(bar->size(), 1u);
  EXPECT_EQ(bar->front().out_features, 14336);
  EXPECT_EQ(bar->front().in_features, 4096);
  EXPECT_EQ(MatchShapes(".*")->size(), LayerShapes().size());
  EXPECT_THAT(MatchShapes("70B")->size(), ::testing::Ge(5u));
}

TEST(LayerShapes, RefusesWhatMatchesNothing) {
  const absl::Status none = MatchShapes("1234x1").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.message()), HasSubstr("14336x4096 8B gate, up"));
  const absl::Status broken = MatchShapes("([").status();
  EXPECT_EQ(std::string(broken.message()), "not a regular expression: ([");
}

TEST(ColdCopies, AreTogetherLargerThanThreeCaches) {
  for (const int64_t l2 : {int64_t{0}, int64_t{50} << 20, int64_t{60} << 20, int64_t{256} << 20}) {
    for (const LayerShape& shape : LayerShapes()) {
      for (const int bits : {2, 4, 16}) {
        const int64_t bytes = shape.out_features * shape.in_features * bits / 8;
        const int64_t copies = ColdCopies(bytes, ColdBytes(l2));
        EXPECT_GE(copies * bytes, int64_t{512} << 20);
        EXPECT_GT(copies * bytes, 3 * l2);
        EXPECT_LT(copies * bytes, std::max(int64_t{512} << 20, 3 * l2 + 1) + bytes);
        // The next launch begins where this one began.
        EXPECT_EQ(GraphProducts(copies) % copies, 0);
        EXPECT_GE(GraphProducts(copies), 100);
      }
    }
  }
  EXPECT_EQ(ColdCopies(int64_t{940} << 20, ColdBytes(int64_t{50} << 20)), 1);
  EXPECT_EQ(GraphProducts(1), 100);
  EXPECT_EQ(GraphProducts(123), 123);
  EXPECT_EQ(GraphProducts(51), 102);
}

// Products of copies equal those of the matrix itself, and leaving the outliers out is leaving them
// out.
TEST(ViewOfCopy, PointsAtWhatWasCopied) {
  for (const TileEncoding encoding : {TileEncoding::kLut, TileEncoding::kAffine}) {
    const RandomLinear dense = MakeRandomLinear(encoding, 3, 40, 300, 0, 11);
    const RandomLinear linear = MakeRandomLinear(encoding, 3, 40, 300, 2, 11);
    ASSERT_EQ(dense.packed, linear.packed);
    const kernels::TileMatrix matrix = ToTileMatrix(linear, nullptr);
    const kernels::TileMatrix without = ToTileMatrix(dense, nullptr);
    const CopyLayout layout = LayoutOf(matrix);
    EXPECT_EQ(layout.bytes % 256, 0);
    // Two copies, the first spoilt.
    const std::vector<char> one = CopyBytes(matrix, layout);
    std::vector<kernels::Words4> memory(2 * one.size() / sizeof(kernels::Words4), {{~0u}});
    auto* const second = reinterpret_cast<char*>(memory.data()) + one.size();
    std::memcpy(second, one.data(), one.size());
    for (const bool outliers : {false, true}) {
      const TileView view = ViewOfCopy(matrix.view(), layout, second, outliers);
      const TileView expected = outliers ? matrix.view() : without.view();
      std::vector<float> a(40 * 300), b(40 * 300);
      ASSERT_TRUE(
          kernels::TileDequantize(Queue::Cpu(), view, 0, 40, FloatType::kFloat32, a.data()).ok());
      ASSERT_TRUE(
          kernels::TileDequantize(Queue::Cpu(), expected, 0, 40, FloatType::kFloat32, b.data())
              .ok());
      EXPECT_EQ(a, b);
    }
    EXPECT_EQ(ReadBytes(matrix, false), without.bytes());
    // 3 row tiles and 1 run: 4 starts; entries come in groups of 16.
    const auto entries = static_cast<int64_t>(matrix.outliers().size());
    EXPECT_EQ(entries % 16, 0);
    EXPECT_EQ(ReadBytes(matrix, true) - without.bytes(), 4 * (4 + entries));
  }
}

TEST(RandomLinear, HasTheOutliersAskedFor) {
  const RandomLinear linear = MakeRandomLinear(TileEncoding::kLut, 4, 500, 4000, 0.45, 3);
  EXPECT_NEAR(static_cast<double>(linear.sparse.entries()) / (500 * 4000), 0.0045, 0.0002);
  EXPECT_EQ(linear.lut.size(), 500u * 16);
  EXPECT_EQ(linear.packed.size(), 500u * 500);
}

TEST(OutputError, IsOneAtTheBound) {
  const std::vector<uint16_t> x = {kernels::FloatToFloat16(1), kernels::FloatToFloat16(-1)};
  const std::vector<float> weights = {3.0f, 2.0f};
  // y64 = 1, Σ|ŵx| = 5: the bound is 5e-3 + 2^-10.
  EXPECT_EQ(OutputError(kernels::FloatToFloat16(1), x, weights), 0);
  const double half = OutputError(kernels::FloatToFloat16(1 + 0x1p-9f), x, weights);
  EXPECT_NEAR(half, 0x1p-9 / (5e-3 + 0x1p-10), 1e-12);
  EXPECT_GT(OutputError(kernels::FloatToFloat16(1.01f), x, weights), 1);
  EXPECT_TRUE(std::isinf(OutputError(0x7e00, x, weights)));  // NaN
  EXPECT_TRUE(std::isinf(OutputError(0x7c00, x, weights)));  // infinity
}

TEST(Median, OfOddAndEvenCounts) {
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 2, 8}), 3);
}

BenchConditions Conditions() {
  BenchConditions conditions;
  conditions.device = "some device";
  conditions.multiprocessors = 132;
  conditions.l2_bytes = int64_t{50} << 20;
  conditions.read_bytes_per_second = 3e12;
  conditions.empty_node_seconds = 0.7e-6;
  conditions.rounds = 7;
  return conditions;
}

ProductRow Row(int bits, int64_t batch, double us, double dense_us, double outliers = 0,
               const char* path = "matvec", bool chosen = true) {
  ProductRow row;
  row.shape = "14336x4096 8B gate, up";
  row.out_features = 14336;
  row.in_features = 4096;
  row.bits = bits;
  row.outlier_percent = outliers;
  row.batch = batch;
  row.path = path;
  row.chosen = chosen;
  row.seconds = us * 1e-6;
  row.dense_seconds = dense_us * 1e-6;
  row.read_bytes = 14336 * 4096 * bits / 8;
  row.error = 0.25;
  row.repeatable = true;
  return row;
}

TEST(ProductRows, PrintWhatTheHeadSays) {
  const ProductRow row = Row(2, 1, 10, 35);
  // 14.68 MB in 10 us are 1.468e12 bytes per second.
  EXPECT_EQ(
      TableLine(row, Conditions()),
      "| 14336x4096 8B gate, up | 2 | 0 % | 1 | matvec | 10.00 | 35.00 | 3.50 | 14.68 | 0.489 "
      "| 0.25 |\n");
  const std::string head = TableHead();
  const std::string line = TableLine(row, Conditions());
  EXPECT_EQ(2 * std::count(line.begin(), line.end(), '|'),
            std::count(head.begin(), head.end(), '|'));
  ProductRow wrong = row;
  wrong.error = 1.5;
  EXPECT_FALSE(Correct(wrong));
  EXPECT_THAT(TableLine(wrong, Conditions()), HasSubstr("1.50 WRONG"));
  wrong = row;
  wrong.repeatable = false;
  EXPECT_FALSE(Correct(wrong));
  EXPECT_THAT(TableLine(wrong, Conditions()), HasSubstr("RUNS DIFFER"));
  wrong = row;
  wrong.error = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(Correct(wrong));
  EXPECT_EQ(ConditionsLine(Conditions()),
            "some device, 132 multiprocessors, L2 50 MiB; read bandwidth 3000.0 GB/s; empty graph "
            "node 0.70 us; medians of 7 interleaved rounds");
  const nlohmann::json json = ToJson(row, Conditions());
  EXPECT_EQ(json.at("path"), "matvec");
  EXPECT_DOUBLE_EQ(json.at("speedup").get<double>(), 3.5);
  EXPECT_NEAR(json.at("read_share").get<double>(), 0.489, 0.001);
}

const Verdict* Find(const std::vector<Verdict>& verdicts, const std::string& what) {
  for (const Verdict& verdict : verdicts) {
    if (verdict.what == what) return &verdict;
  }
  return nullptr;
}

TEST(Judge, AppliesTheBarsToTheWorstRow) {
  const std::vector<ProductRow> rows = {
      Row(2, 1, 6, 36),
      Row(2, 8, 6.3, 36),
      Row(3, 1, 10, 36),
      Row(3, 8, 12, 36),
      Row(2, 1, 6.5, 36, 0.45),
      Row(2, 32, 12, 36, 0, "matmul"),
      Row(3, 64, 20, 36, 0, "matmul"),
      Row(3, 64, 5, 36, 0, "matvec", false),  // not what is chosen: no verdict on it
  };
  const std::vector<Verdict> verdicts = Judge(rows, Conditions());
  const Verdict* two = Find(verdicts, "14336x4096, batch 1, 2 bits: x cuBLAS fp16");
  ASSERT_NE(two, nullptr);
  EXPECT_DOUBLE_EQ(*two->measured, 6);
  EXPECT_TRUE(two->met());
  const Verdict* three = Find(verdicts, "14336x4096, batch 1, 3 bits: x cuBLAS fp16");
  EXPECT_FALSE(three->met());
  EXPECT_THAT(VerdictLine(*three), HasSubstr("3.600, bar at least 3.8 MISSED; worst: 14336x4096"));
  const Verdict* four = Find(verdicts, "14336x4096, batch 1, 4 bits: x cuBLAS fp16");
  EXPECT_FALSE(four->measured.has_value());
  EXPECT_FALSE(four->met());
  EXPECT_THAT(VerdictLine(*four), HasSubstr("not measured"));
  const Verdict* eight = Find(verdicts, "14336x4096, batch 8: time over batch 1");
  EXPECT_DOUBLE_EQ(*eight->measured, 1.2);
  EXPECT_FALSE(eight->met());
  EXPECT_THAT(eight->worst, HasSubstr("3 bits"));
  EXPECT_DOUBLE_EQ(*Find(verdicts, "batch 32-64: x cuBLAS fp16")->measured, 1.8);
  EXPECT_NEAR(*Find(verdicts, "outliers: time over that without")->measured, 6.5 / 6, 1e-12);
  EXPECT_TRUE(Find(verdicts, "error over its bound, infinite where runs differ")->met());
}

TEST(FastestPaths, SayWhereTheTableIsWrong) {
  const std::vector<ProductRow> rows = {
      Row(3, 32, 20, 36, 0, "matmul", true), Row(3, 32, 18, 36, 0, "dequantize", false),
      Row(2, 16, 9, 36, 0, "matvec", true),  Row(2, 16, 11, 36, 0, "matmul", false),
      Row(2, 16, 1, 36, 0.45, "matmul"),  // outliers take no part
  };
  const std::vector<PathChoice> choices = FastestPaths(rows);
  ASSERT_EQ(choices.size(), 2u);
  EXPECT_EQ(choices[0].fastest, &rows[2]);  // 2 bits first
  EXPECT_EQ(choices[0].chosen, &rows[2]);
  EXPECT_EQ(choices[1].fastest, &rows[1]);
  EXPECT_EQ(choices[1].chosen, &rows[0]);
  EXPECT_THAT(PathTableText(rows),
              HasSubstr("3, 14336x4096 8B gate, up, batch 32: dequantize 18.00 us; "
                        "CHOSEN matmul takes 1.11 x"));
}

// Where the lines cross, each bound is the last batch at which the earlier path still wins.
TEST(FitPathTable, FindsTheBoundsThatLoseLeast) {
  std::vector<ProductRow> rows;
  for (const int64_t batch : {1, 8, 16, 64, 128, 256, 1024, 4096}) {
    const auto tokens = static_cast<double>(batch);
    if (batch <= 16) rows.push_back(Row(3, batch, 10 + tokens / 8, 40, 0, "matvec"));
    if (batch <= 1024) rows.push_back(Row(3, batch, 11.5 + tokens / 8, 40, 0, "matmul"));
    rows.push_back(Row(3, batch, 35 + tokens / 16, 40, 0, "dequantize"));
  }
  // 11.5 + b/8 and 35 + b/16 meet at 376 tokens.
  std::vector<FittedPathRow> fitted = FitPathTable(rows);
  ASSERT_EQ(fitted.size(), 1u);
  EXPECT_EQ(fitted[0].row.matvec_batch, 16);
  EXPECT_EQ(fitted[0].row.matmul_batch, 256);
  EXPECT_DOUBLE_EQ(fitted[0].mean_slowdown, 1);
  // A layer on which dequantizing already wins at 256, by more than the other loses.
  const size_t first = rows.size();
  for (size_t i = 0; i < first; ++i) {
    ProductRow row = rows[i];
    row.shape = "another";
    if (row.batch == 256 && row.path == "matmul") row.seconds *= 3;
    rows.push_back(row);
  }
  fitted = FitPathTable(rows);
  EXPECT_EQ(fitted[0].row.matmul_batch, 128);
  EXPECT_GT(fitted[0].mean_slowdown, 1);
  EXPECT_NEAR(fitted[0].worst_slowdown, (35 + 16) / (11.5 + 32), 1e-12);
  EXPECT_THAT(PathTableText(rows), HasSubstr("    {TileEncoding::kLut, 3, 16, 128},  // mean 1.0"));
  // A path that was not timed cannot be chosen.
  std::erase_if(rows, [](const ProductRow& row) { return row.path == "matmul"; });
  EXPECT_EQ(FitPathTable(rows)[0].row.matmul_batch, 16);
}

// Runs what was recorded at once, on the CPU.
class WallClockWork : public TimedWork {
 public:
  explicit WallClockWork(std::function<absl::Status()> body) : body_(std::move(body)) {}
  absl::StatusOr<double> Run() override {
    const auto begin = std::chrono::steady_clock::now();
    GRADQ_RETURN_IF_ERROR(body_());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  std::function<absl::Status()> body_;
};

ProductPlace CpuPlace() {
  ProductPlace place;
  place.record = [](std::function<absl::Status()> body) {
    return absl::StatusOr<std::unique_ptr<TimedWork>>(
        std::make_unique<WallClockWork>(std::move(body)));
  };
  place.wait = [] { return absl::OkStatus(); };
  place.cold_bytes = 5000;
  return place;
}

// The whole measurement of a layer with odd sizes, every path, against itself: on the CPU products
// come from the oracle, and dense ones from ATen.
TEST(TimeLayer, ChecksAndTimesEveryPath) {
  at::set_num_threads(1);
  const LayerShape shape = {40, 72, "small"};
  for (const TileEncoding encoding : {TileEncoding::kLut, TileEncoding::kAffine}) {
    ProductChoice choice;
    choice.encoding = encoding;
    choice.bits = {2, 3};
    choice.batch = {1, 17};
    choice.outliers = {0, 2};
    choice.path = "all";
    choice.rounds = 3;
    size_t printed = 0;
    const auto rows = TimeLayer(shape, choice, CpuPlace(), [&](const ProductRow&) { ++printed; });
    ASSERT_TRUE(rows.ok()) << rows.status();
    // 2 widths, with outliers and without: three paths for 1 token, two for 17.
    ASSERT_EQ(rows->size(), 4u * 3 + 4 * 2);
    EXPECT_EQ(printed, rows->size());
    for (const ProductRow& row : *rows) {
      EXPECT_TRUE(Correct(row)) << row.path << " " << row.error;
      EXPECT_GT(row.seconds, 0);
      EXPECT_GT(row.dense_seconds, 0);
      EXPECT_EQ(row.shape, "40x72 small");
      EXPECT_EQ(row.chosen, row.path == (row.batch == 1 ? "matvec" : "matmul"));
    }
    EXPECT_GT((*rows)[3].read_bytes, (*rows)[0].read_bytes);  // outliers are read, too
    EXPECT_EQ(FastestPaths(*rows).size(), 4u);
  }
}

}  // namespace
}  // namespace gradq
