// LNQ coordinate descent (1024 x 4096, 3 bits, 4 groups) beside a 2048³ sgemm of the same library
// and threads, and optimal k-means of one row. Counts 2 · rows · columns² FLOP per cycle. Best of
// several alternating rounds.
//
//   MKL_CBWR=AVX512,STRICT OMP_NUM_THREADS=4 build/release/bin/coordinate_descent [THREADS]

#include "lib/kernels/coordinate_descent.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "lib/base/thread_pool.h"
#include "lib/kernels/kmeans1d.h"
#include "lib/transformer/numerics.h"

namespace gradq {
namespace {

using kernels::AlignedFloats;
using kernels::kTileRows;

constexpr int64_t kRows = 1024, kColumns = 4096, kOrder = 2048;
constexpr int kLevels = 8, kGroups = 4, kRounds = 7;

struct Random {
  uint32_t state = 1;
  float Next() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Tile {
  AlignedFloats weight{kColumns * kTileRows}, error{kColumns * kTileRows};
  AlignedFloats table{kLevels * kTileRows}, midpoint{kLevels * kTileRows};

  explicit Tile(Random* random) {
    for (int64_t i = 0; i < kColumns * kTileRows; ++i) weight.data()[i] = random->Next();
    for (int i = 0; i < kLevels * kTileRows; ++i) {
      table.data()[i] = -0.875f + 0.25f * static_cast<float>(i / kTileRows);
      midpoint.data()[i] = table.data()[i] + 0.125f;
    }
  }
  kernels::RowTile View() {
    return {weight.data(), error.data(), kLevels, table.data(), midpoint.data()};
  }
};

// Diagonally dominant with random entries elsewhere: descent moves weights in every cycle.
std::vector<float> Matrix(Random* random) {
  std::vector<float> h(kColumns * kColumns);
  for (int64_t i = 0; i < kColumns; ++i) {
    for (int64_t j = 0; j < i; ++j)
      h[i * kColumns + j] = h[j * kColumns + i] = 0.02f * random->Next();
    h[i * kColumns + i] = 1.0f;
  }
  return h;
}

void CompareDescent(ThreadPool* pool) {
  Random random;
  std::vector<kernels::PanelMatrix> groups;
  for (int k = 0; k < kGroups; ++k) groups.emplace_back(Matrix(&random).data(), kColumns);
  const std::vector<float> inverse(kColumns, 1.0f);
  std::vector<Tile> tiles;
  constexpr int64_t kTiles = kRows / kTileRows;
  for (int64_t i = 0; i < kTiles; ++i) tiles.emplace_back(&random);
  const auto empty = [] {
    at::Tensor t =
        at::_ops::empty_memory_format::call({kOrder, kOrder}, at::kFloat, {}, at::kCPU, {}, {});
    return t.fill_(0.5);
  };
  const at::Tensor a = empty(), b = empty();
  double sgemm = 0.0, descent = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    const double start = Seconds();
    const at::Tensor product = at::_ops::mm::call(a, b);
    const double middle = Seconds();
    // Always from the rounded weights, so that every round does the same work.
    pool->ParallelFor(kTiles, [&](int64_t i, int) {
      kernels::RoundToNearest(kColumns, tiles[i].View(), nullptr, nullptr);
    });
    const double rounded = Seconds();
    pool->ParallelFor(kTiles, [&](int64_t i, int) {
      kernels::CoordinateDescentCycle(groups[i * kGroups / kTiles], inverse.data(), tiles[i].View(),
                                      nullptr);
    });
    const double end = Seconds();
    sgemm = std::max(sgemm, 2e-9 * kOrder * kOrder * kOrder / (middle - start));
    descent = std::max(descent, 2e-9 * kRows * kColumns * kColumns / (end - rounded));
  }
  std::printf("sgemm %.1f GFLOP/s, coordinate descent %.1f GFLOP/s, ratio %.3f (%d threads)\n",
              sgemm, descent, descent / sgemm, pool->threads());
}

void TimeKmeans() {
  Random random;
  std::vector<float> values(kColumns), weights(kColumns);
  for (float& value : values) value = random.Next() * random.Next();
  for (float& weight : weights) weight = std::abs(random.Next());
  kernels::Kmeans1dWorkspace workspace;
  for (const int levels : {4, 8, 16}) {
    std::vector<double> centers(levels);
    double best = 1e9;
    for (int round = 0; round < kRounds; ++round) {
      const double start = Seconds();
      kernels::OptimalKmeans1d(values, weights, centers, &workspace);
      best = std::min(best, Seconds() - start);
    }
    std::printf("optimal k-means of %ld values, %d codewords: %.3f ms\n",
                static_cast<long>(kColumns), levels, best * 1e3);
  }
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  const int threads = argc > 1 ? std::atoi(argv[1]) : 4;
  const auto numerics = gradq::SetUpNumerics(threads, "cpu");
  if (!numerics.ok()) {
    std::fprintf(stderr, "%s\n", std::string(numerics.status().message()).c_str());
    return 1;
  }
  std::printf("%s\n", numerics->c_str());
  gradq::ThreadPool pool(threads);
  gradq::CompareDescent(&pool);
  gradq::TimeKmeans();
  return 0;
}
