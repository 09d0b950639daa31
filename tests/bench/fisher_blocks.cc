// fisher_blocks against a 2048³ sgemm in the same run, threads and MKL mode: the rate counts the
// full product (2·T·d²·g FLOP), so symmetry may take the ratio above 1. Also against the read
// bandwidth of memory, for the bytes of x and dz.
//
//   fisher_blocks [threads]

#include <ATen/core/Tensor.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/ones_ops.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/statistics.h"
#include "lib/statistics/statistic.h"
#include "lib/transformer/numerics.h"

namespace {

at::Tensor Filled(int64_t rows, int64_t columns, uint32_t seed) {
  at::Tensor tensor =
      at::_ops::ones::call(c10::fromIntArrayRefSlow({rows, columns}), at::kFloat, {}, at::kCPU, {});
  float* data = tensor.mutable_data_ptr<float>();
  uint32_t state = seed;
  for (int64_t i = 0; i < rows * columns; ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return tensor;
}

// Best of several, each at least 30 ms: the machine may be shared.
template <typename F>
double Seconds(F&& body) {
  using Clock = std::chrono::steady_clock;
  body();
  double best = 1e30;
  for (int trial = 0; trial < 7; ++trial) {
    const auto start = Clock::now();
    int calls = 0;
    double elapsed = 0;
    do {
      body();
      ++calls;
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < 0.03);
    best = std::min(best, elapsed / calls);
  }
  return best;
}

double ReadBandwidth(gradq::ThreadPool& pool) {
  const std::vector<int64_t> data((size_t{512} << 20) / 8, 1);
  std::vector<int64_t> sums(pool.threads() * 64);
  const int64_t part = static_cast<int64_t>(data.size()) / 64;
  const double seconds = Seconds([&] {
    pool.ParallelFor(64, [&](int64_t i, int) {
      int64_t sum = 0;
      for (int64_t j = i * part; j < (i + 1) * part; ++j) sum += data[j];
      sums[i % sums.size()] = sum;
    });
  });
  return static_cast<double>(data.size() * 8) / seconds;
}

}  // namespace

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  const int threads =
      argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  const auto numerics = gradq::SetUpNumerics(threads, "cpu");
  GRADQ_CHECK(numerics.ok());
  gradq::ThreadPool pool(threads);
  std::printf("%s, %d threads\n", numerics->c_str(), threads);

  const at::Tensor a = Filled(2048, 2048, 1), b = Filled(2048, 2048, 2);
  const auto sgemm = [&] {
    return 2.0 * 2048 * 2048 * 2048 / Seconds([&] { at::_ops::mm::call(a, b); });
  };
  const double bandwidth = ReadBandwidth(pool);
  std::printf("read bandwidth %.1f GB/s\n", bandwidth * 1e-9);

  constexpr int64_t kTokens = 2048;
  constexpr int kGroups = 4;
  for (const auto& [in, out] :
       {std::pair<int64_t, int64_t>{256, 256}, {256, 688}, {688, 256}, {1024, 1024}}) {
    const at::Tensor x = Filled(kTokens, in, 3), dz = Filled(kTokens, out, 4);
    auto statistic = gradq::MakeStatistic(gradq::kFisherBlocks, out, in, kGroups, at::kCPU, &pool);
    GRADQ_CHECK(statistic.ok());
    const double reference = sgemm();
    const double seconds = Seconds([&] { (*statistic)->Accumulate(x, dz, 4); });
    const double rate = 2.0 * kTokens * in * in * kGroups / seconds;
    const double bytes = static_cast<double>(4 * kTokens * (in + out));
    std::printf(
        "fisher_blocks g=%d columns %5ld rows %5ld: %8.3f ms, %7.1f GFLOP/s, %.2f x sgemm (%.1f "
        "GFLOP/s), %.2f x read bandwidth\n",
        kGroups, in, out, seconds * 1e3, rate * 1e-9, rate / reference, reference * 1e-9,
        bytes / seconds / bandwidth);
  }
}
