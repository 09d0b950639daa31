// GPTQ and GPTVQ-1D: the sweep's SIMD against its plain loops, the published algorithm (a golden
// that compressed-tensors packed and unpacked, and plain fp64 loops here), weights kept apart.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/format/linear_tensors.h"
#include "lib/format/packing.h"
#include "lib/kernels/error_feedback.h"
#include "lib/kernels/feedback_sweep.h"
#include "lib/solvers/quantizer.h"
#include "tests/solvers/test_problem.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

using kernels::AlignedFloats;
using kernels::kTileRows;

// The upper factor of H in the order given, from the kernel under test.
kernels::PanelMatrix Factor(const at::Tensor& h, const std::vector<int32_t>& order) {
  ThreadPool pool(2);
  std::vector<float> factor;
  EXPECT_TRUE(
      kernels::FeedbackFactor(h.const_data_ptr<float>(), h.size(0), 0.5, order, &pool, &factor));
  return kernels::PanelMatrix(factor.data(), h.size(0));
}

struct SweepResult {
  std::vector<float> error;
  std::vector<uint8_t> codes;
};

class FeedbackSweepTest : public testing::TestWithParam<int64_t> {};

TEST_P(FeedbackSweepTest, SimdGivesTheBitsOfThePlainLoops) {
  const int64_t columns = GetParam();
  const at::Tensor h = MakeProblem({"", 1, columns, 1, columns + 5}, 2).fisher_blocks[0];
  std::vector<int32_t> order(columns), grid(columns);
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.begin() + columns / 2);
  for (int64_t j = 0; j < columns; ++j) grid[j] = static_cast<int32_t>(j % 3);
  const kernels::PanelMatrix feedback = Factor(h, order);
  constexpr int kLevels = 8;
  AlignedFloats weight(columns * kTileRows), active(columns * kTileRows), scale(3 * kTileRows),
      zero(3 * kTileRows), table(kLevels * kTileRows), midpoint(kLevels * kTileRows);
  const auto fill = [](AlignedFloats* to, int64_t count, uint32_t seed, auto&& map) {
    const std::vector<float> values = Pseudorandoms(count, seed);
    for (int64_t i = 0; i < count; ++i) to->data()[i] = map(values[i], i);
  };
  fill(&weight, columns * kTileRows, 1, [](float v, int64_t) { return v; });
  fill(&active, columns * kTileRows, 2, [](float v, int64_t) { return v > 0.8f ? 0.0f : 1.0f; });
  fill(&scale, 3 * kTileRows, 3, [](float v, int64_t) { return 0.2f + 0.1f * v; });
  fill(&zero, 3 * kTileRows, 4, [](float v, int64_t) { return std::nearbyint(3.5f + 3.0f * v); });
  fill(&table, kLevels * kTileRows, 5,
       [](float v, int64_t i) { return static_cast<float>(i / kTileRows) * 0.25f - 1 + 0.1f * v; });
  for (int64_t i = 0; i < (kLevels - 1) * kTileRows; ++i) {
    midpoint.data()[i] = 0.5f * (table.data()[i] + table.data()[i + kTileRows]);
  }
  const kernels::AffineGrids grids{kLevels - 1, scale.data(), zero.data(), grid.data()};
  const kernels::RowCodebooks codebooks{kLevels, table.data(), midpoint.data()};

  // Unrounded over everything, then rounded in two ranges that no panel fits.
  const auto run = [&](auto&& unrounded, auto&& rounded, bool some_apart) {
    AlignedFloats error(columns * kTileRows);
    SweepResult result;
    result.codes.resize(columns * kTileRows);
    const kernels::SweepTile tile{weight.data(), error.data(), some_apart ? active.data() : nullptr,
                                  result.codes.data()};
    const int64_t middle = columns * 2 / 5;
    rounded(0, middle, tile);
    unrounded(middle, columns, tile);
    result.error.assign(error.data(), error.data() + columns * kTileRows);
    rounded(middle, columns, tile);
    result.error.insert(result.error.end(), error.data(), error.data() + columns * kTileRows);
    return result;
  };
  const auto compare = [](const SweepResult& simd, const SweepResult& plain) {
    EXPECT_EQ(simd.codes, plain.codes);
    EXPECT_EQ(std::memcmp(simd.error.data(), plain.error.data(), plain.error.size() * 4), 0);
  };
  for (const bool apart : {false, true}) {
    const auto bind = [&](auto sweep, const auto& grid_or_codebook) {
      return [&, sweep](int64_t from, int64_t to, const kernels::SweepTile& tile) {
        sweep(feedback, order.data(), from, to, grid_or_codebook, tile);
      };
    };
    const auto free_run = [&](auto sweep) {
      return [&, sweep](int64_t from, int64_t to, const kernels::SweepTile& tile) {
        sweep(feedback, order.data(), from, to, tile);
      };
    };
    compare(run(free_run(kernels::UnroundedSweep), bind(kernels::AffineSweep, grids), apart),
            run(free_run(kernels::reference::UnroundedSweep),
                bind(kernels::reference::AffineSweep, grids), apart));
    compare(run(free_run(kernels::UnroundedSweep), bind(kernels::CodebookSweep, codebooks), apart),
            run(free_run(kernels::reference::UnroundedSweep),
                bind(kernels::reference::CodebookSweep, codebooks), apart));
  }
}

INSTANTIATE_TEST_SUITE_P(Columns, FeedbackSweepTest, testing::Values(1, 11, 12, 33, 100));

TEST(InverseDiagonalTest, TimesTheMatrixItIsTheIdentity) {
  ThreadPool pool(3);
  constexpr int64_t kColumns = 130;
  const at::Tensor h = MakeProblem({"", 1, kColumns, 1, 200}, 2).fisher_blocks[0];
  std::vector<double> diagonal;
  ASSERT_TRUE(kernels::InverseDiagonal(h.const_data_ptr<float>(), kColumns, 0.5, &pool, &diagonal));
  // Column j of the inverse by conjugate gradients in fp64.
  for (const int64_t j : {int64_t{0}, int64_t{63}, int64_t{64}, kColumns - 1}) {
    std::vector<double> x(kColumns, 0.0), r(kColumns, 0.0);
    r[j] = 1.0;
    std::vector<double> p = r;
    double rr = 1.0;
    for (int step = 0; step < 400 && rr > 1e-26; ++step) {
      std::vector<double> hp(kColumns, 0.0);
      for (int64_t i = 0; i < kColumns; ++i) {
        for (int64_t k = 0; k < kColumns; ++k)
          hp[i] += (h.const_data_ptr<float>()[i * kColumns + k] + (i == k ? 0.5 : 0.0)) * p[k];
      }
      const double alpha = rr / std::inner_product(p.begin(), p.end(), hp.begin(), 0.0);
      for (int64_t i = 0; i < kColumns; ++i) {
        x[i] += alpha * p[i];
        r[i] -= alpha * hp[i];
      }
      const double next = std::inner_product(r.begin(), r.end(), r.begin(), 0.0);
      for (int64_t i = 0; i < kColumns; ++i) p[i] = r[i] + next / rr * p[i];
      rr = next;
    }
    EXPECT_NEAR(diagonal[j], x[j], 1e-9 * x[j]);
  }
}

class PackedGptq : public testing::TestWithParam<std::string> {};

TEST_P(PackedGptq, SameBytesAsThePublishedAlgorithmPackedByCompressedTensors) {
  const std::string path = GRADQ_GOLDEN "/format/pack_quantized_gptq.safetensors";
  const GoldenFile golden(path);
  LayerProblem problem;
  problem.name = "l";
  problem.weight = golden.Get("weight");
  problem.gram = golden.Get("gram");
  problem.objective = Objective::kPlain;
  problem.bits = 4;
  problem.groups = {problem.weight.size(0), 1};
  problem.options = {{"group_size", "32"}, {"order", GetParam()}};
  ThreadPool pool(2);
  const auto linear = SolveLayer("gptq", problem, {&pool, nullptr});
  ASSERT_TRUE(linear.ok()) << linear.status();

  const std::string bytes = *ReadFile(path);
  const auto header = ParseSafetensors(bytes, path);
  ASSERT_TRUE(header.ok());
  const auto bytes_of = [&](const std::string& name) {
    const PlacedTensor* tensor = header->Find(GetParam() + "." + name);
    EXPECT_NE(tensor, nullptr) << name;
    return tensor == nullptr ? std::string() : bytes.substr(tensor->offset, tensor->info.bytes);
  };
  std::string stored;
  for (const TensorInfo& info : LinearTensorInfos(*linear)) stored += bytes_of(info.name.substr(2));
  EXPECT_EQ(LinearTensorBytes(*linear), stored);
  const std::vector<float> weights = Dequantize(*linear);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(weights.data()), weights.size() * 4),
            bytes_of("expected"));
}

INSTANTIATE_TEST_SUITE_P(Orders, PackedGptq, testing::Values("natural", "activation"));

// The published sweep on one row with grids given: inverse by Gauss-Jordan, its upper Cholesky
// factor, every error spread over all later columns at once. A weight kept apart has the error of
// going back to its original.
std::vector<double> PublishedRow(const float* h, int64_t n, double damping, const float* weight,
                                 const uint8_t* apart, const std::vector<double>& values) {
  std::vector<double> a(n * n), upper(n * n, 0.0), inverse(n * n, 0.0), w(weight, weight + n);
  double mean = 0.0;
  for (int64_t j = 0; j < n; ++j) mean += h[j * n + j] / static_cast<double>(n);
  for (int64_t i = 0; i < n * n; ++i) a[i] = h[i] + (i % (n + 1) == 0 ? damping * mean : 0.0);
  for (int64_t j = 0; j < n; ++j) inverse[j * n + j] = 1.0;
  for (int64_t j = 0; j < n; ++j) {
    const double pivot = a[j * n + j];
    for (int64_t k = 0; k < n; ++k) {
      a[j * n + k] /= pivot;
      inverse[j * n + k] /= pivot;
    }
    for (int64_t i = 0; i < n; ++i) {
      const double factor = i == j ? 0.0 : a[i * n + j];
      for (int64_t k = 0; k < n; ++k) {
        a[i * n + k] -= factor * a[j * n + k];
        inverse[i * n + k] -= factor * inverse[j * n + k];
      }
    }
  }
  // inverse = upperᵀ · upper.
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double sum = inverse[i * n + j];
      for (int64_t k = 0; k < i; ++k) sum -= upper[k * n + i] * upper[k * n + j];
      upper[i * n + j] = i == j ? std::sqrt(sum) : sum / upper[i * n + i];
    }
  }
  std::vector<double> result(n);
  for (int64_t j = 0; j < n; ++j) {
    result[j] = *std::min_element(values.begin(), values.end(), [&](double x, double y) {
      return std::abs(x - w[j]) < std::abs(y - w[j]);
    });
    if (apart[j] != 0) result[j] = weight[j];
    const double error = (w[j] - result[j]) / upper[j * n + j];
    for (int64_t k = j; k < n; ++k) w[k] -= error * upper[j * n + k];
  }
  return result;
}

double Form(const at::Tensor& h, const std::vector<double>& quantized, const float* weight) {
  const std::vector<float> values(quantized.begin(), quantized.end());
  return PlainForm(h.const_data_ptr<float>(), h.size(0), values.data(), weight);
}

// Grids without the weights kept apart, those without error, the others as published.
TEST(GptqApartTest, LaterColumnsCompensateAsForAnyColumnWithoutError) {
  LayerProblem problem = MakeProblem({"", 7, 45, 2, 90}, 3);
  const int64_t columns = problem.weight.size(1);
  problem.apart.assign(problem.weight.numel(), 0);
  const std::vector<float> random = Pseudorandoms(problem.weight.numel(), 9);
  for (int64_t i = 0; i < problem.weight.numel(); ++i) {
    if (random[i] < 0.8f) continue;
    problem.apart[i] = 1;
    problem.weight.mutable_data_ptr<float>()[i] *= 5.0f;
  }
  ThreadPool pool(2);
  problem.options = {{"order", "natural"}};
  const auto linear = SolveLayer("gptq", problem, {&pool, nullptr});
  ASSERT_TRUE(linear.ok()) << linear.status();
  const std::vector<float> quantized = Dequantize(*linear), dense = DequantizeDense(*linear);
  int compared = 0;
  for (int64_t row = 0; row < problem.weight.size(0); ++row) {
    const float* weight = problem.weight.const_data_ptr<float>() + row * columns;
    const uint8_t* apart = problem.apart.data() + row * columns;
    float low = 0.0f, high = 0.0f;
    for (int64_t j = 0; j < columns; ++j) {
      if (apart[j] == 0) low = std::min(low, weight[j]), high = std::max(high, weight[j]);
    }
    const double scale = Float16Value(Float16Bits((high - low) / 7.0f));
    const double zero = std::nearbyint(-low / scale);
    std::vector<double> values;
    for (int code = 0; code < 8; ++code) values.push_back((code - zero) * scale);
    const at::Tensor& h = problem.fisher_blocks[problem.groups.group_of(row)];
    const std::vector<double> expected =
        PublishedRow(h.const_data_ptr<float>(), columns, 0.01, weight, apart, values);
    // Rows that round to nearest serves better keep that.
    std::vector<double> nearest(columns);
    for (int64_t j = 0; j < columns; ++j) {
      const double steps = std::clamp(std::nearbyint(weight[j] / scale), -zero, 7.0 - zero);
      nearest[j] = apart[j] != 0 ? weight[j] : steps * scale;
    }
    if (Form(h, nearest, weight) <= Form(h, expected, weight)) continue;
    ++compared;
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = row * columns + j;
      EXPECT_NEAR(quantized[at], expected[j], 2e-3 * std::abs(expected[j]) * apart[j])
          << row << ", " << j;
      if (apart[j] != 0) {
        // The nearest value of the grid.
        for (const double value : values)
          EXPECT_LE(std::abs(dense[at] - weight[j]), std::abs(value - weight[j]) + 1e-6);
      }
    }
  }
  EXPECT_GE(compared, 4);
}

double SolvedObjective(const LayerProblem& problem, std::string_view method, OptionMap options) {
  LayerProblem other = problem;
  other.options = std::move(options);
  ThreadPool pool(2);
  const auto linear = SolveLayer(method, other, {&pool, nullptr});
  EXPECT_TRUE(linear.ok()) << linear.status();
  return linear.ok() ? *linear->record.objective_final : 0.0;
}

TEST(GptqOrderTest, OrderActivationImpliesStaticGroups) {
  const LayerProblem problem = MakeProblem({"", 8, 80, 2, 160}, 3);
  const auto objective = [&](const char* order, const char* fixed) {
    return SolvedObjective(problem, "gptq",
                           {{"group_size", "16"}, {"order", order}, {"static_groups", fixed}});
  };
  EXPECT_EQ(objective("activation", "no"), objective("activation", "yes"));
  EXPECT_NE(objective("natural", "no"), objective("natural", "yes"));
  EXPECT_NE(objective("natural", "yes"), objective("activation", "yes"));
}

TEST(GptqDampingTest, LoadsAreRecordedWhereTheOptionsDoesNotSuffice) {
  LayerProblem singular = MakeProblem({"", 4, 48, 2, 7}, 3);
  ThreadPool pool(1);
  const auto damped = SolveLayer("gptq", singular, {&pool, nullptr});
  ASSERT_TRUE(damped.ok());
  EXPECT_TRUE(damped->record.damping.empty());
  singular.options = {{"damping", "0"}};
  const auto ladder = SolveLayer("gptq", singular, {&pool, nullptr});
  ASSERT_TRUE(ladder.ok()) << ladder.status();
  EXPECT_FALSE(ladder->record.damping.empty());
}

TEST(GptvqTest, MoreIterationsNeverRaiseTheObjective) {
  const LayerProblem problem = MakeProblem({"", 20, 60, 2, 120}, 3);
  const double one = SolvedObjective(problem, "gptvq1d", {});
  const double five = SolvedObjective(problem, "gptvq1d", {{"iterations", "5"}});
  EXPECT_LT(five, one);
  EXPECT_LT(one, SolvedObjective(problem, "squeezellm", {}));
}

TEST(GptvqTest, WeightsKeptApartDontMoveTheCodebook) {
  LayerProblem problem = MakeProblem({"", 5, 60, 1, 120}, 3);
  problem.apart.assign(problem.weight.numel(), 0);
  problem.apart[17] = 1;
  ThreadPool pool(1);
  std::vector<std::vector<uint16_t>> tables;
  std::vector<float> values;
  for (const float value : {3.0f, 30.0f}) {
    problem.weight.mutable_data_ptr<float>()[17] = value;
    const auto linear = SolveLayer("gptvq1d", problem, {&pool, nullptr});
    ASSERT_TRUE(linear.ok()) << linear.status();
    tables.push_back(linear->lut);
    EXPECT_NEAR(Dequantize(*linear)[17], value, 2e-3 * value);
    EXPECT_LT(DequantizeDense(*linear)[17], 1.5f);
  }
  EXPECT_EQ(tables[0], tables[1]);
}

}  // namespace
}  // namespace gradq
