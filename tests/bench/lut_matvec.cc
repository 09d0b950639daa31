// Packed bytes per second of LutMatmul at batch 1 on cold 4096 × 4096 matrices, as a share of what
// reading the same memory costs in the same run on the same threads. Matrices rotate over more than
// four times the last-level cache, so that none is found in it again.
//
// Then the time of the same products with outliers (--outliers, 0.45 % of the weights by default)
// over that without, passes taken in turns.
//
//   lut_matvec [--threads N] [--bits B] [--target avx512|avx2] [--seconds S]
//              [--outliers PERCENT]

#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/thread_pool.h"
#include "lib/kernels/lut_matmul.h"

namespace gradq::kernels {
namespace {

constexpr int64_t kSize = 4096;

struct Options {
  int threads = 0;
  int bits = 0;  // 0: 2, 3 and 4
  int64_t target = 0;
  double seconds = 3;
  double outliers = 0.45;  // percent of the weights
};

int64_t LastCacheBytes() {
  const int64_t l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return l3 > 0 ? l3 : std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), int64_t{32} << 20);
}

int64_t AvailableBytes() { return int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One pass over all matrices; GB/s of packed codes.
double ReadPass(const std::vector<LutMatrix>& matrices, int64_t words, ThreadPool& pool) {
  std::vector<uint32_t> sums(matrices.size());
  const double start = Now();
  pool.ParallelFor(static_cast<int64_t>(matrices.size()),
                   [&](int64_t m, int) { sums[m] = SumWords(matrices[m].row(0), words); });
  const double seconds = Now() - start;
  volatile uint32_t sink = sums[0];
  (void)sink;
  return static_cast<double>(matrices.size()) * static_cast<double>(words) * 4 / seconds / 1e9;
}

// The same matrix by matrix, in the calls and tiles of a product: what such calls can reach on this
// machine as busy as it is.
double ReadCallsPass(const std::vector<LutMatrix>& matrices, int64_t words, ThreadPool& pool) {
  constexpr int64_t kTiles = kSize / 32;
  std::vector<uint32_t> sums(kTiles);
  const double start = Now();
  for (const LutMatrix& matrix : matrices) {
    pool.ParallelFor(kTiles, [&](int64_t tile, int) {
      sums[tile] = SumWords(matrix.row(0) + tile * (words / kTiles), words / kTiles);
    });
  }
  const double seconds = Now() - start;
  volatile uint32_t sink = sums[0];
  (void)sink;
  return static_cast<double>(matrices.size()) * static_cast<double>(words) * 4 / seconds / 1e9;
}

double MultiplyPass(const std::vector<LutMatrix>& matrices, int64_t words, const float* x,
                    std::vector<float>& y, ThreadPool& pool) {
  const double start = Now();
  for (const LutMatrix& matrix : matrices) LutMatmul(matrix, x, 1, y.data(), &pool);
  const double seconds = Now() - start;
  return static_cast<double>(matrices.size()) * static_cast<double>(words) * 4 / seconds / 1e9;
}

// Evenly random places, as many in all as `percent` asks for.
SparseRows RandomOutliers(double percent, std::mt19937_64& random) {
  std::vector<int32_t> row_ptr = {0};
  std::vector<uint16_t> col, value;
  const auto limit = static_cast<uint64_t>(percent / 100 * (1 << 24));
  for (int64_t r = 0; r < kSize; ++r) {
    for (int64_t c = 0; c < kSize; ++c) {
      if (random() % (1 << 24) >= limit) continue;
      col.push_back(static_cast<uint16_t>(c));
      value.push_back(static_cast<uint16_t>(0x2000 + random() % 0x1800));
    }
    row_ptr.push_back(static_cast<int32_t>(col.size()));
  }
  return SparseRows(row_ptr, col, value, kSize);
}

// Matrices taken in turns with and without outliers: neighbours on a shared machine slow both.
void RunOutliers(int bits, const Options& options, const std::vector<LutMatrix>& dense,
                 const std::vector<LutMatrix>& sparse, const float* x, std::vector<float>& y,
                 ThreadPool& pool) {
  std::vector<double> ratio;
  const double end = Now() + options.seconds;
  while (Now() < end || ratio.size() < 3) {
    constexpr size_t kStretch = 8;  // products of one kind in a row
    for (size_t first = 0; first + kStretch <= sparse.size(); first += kStretch) {
      const auto seconds = [&](const std::vector<LutMatrix>& matrices) {
        const double start = Now();
        for (size_t m = first; m < first + kStretch; ++m)
          LutMatmul(matrices[m], x, 1, y.data(), &pool);
        return Now() - start;
      };
      const double without = seconds(dense);
      ratio.push_back(seconds(sparse) / without);
    }
  }
  std::printf("%d bits: %.2f %% outliers, time %.3f of that without (median of %zu)\n", bits,
              100.0 * static_cast<double>(sparse[0].sparse().entries()) / (kSize * kSize),
              Median(ratio), ratio.size());
}

void Run(int bits, const Options& options, ThreadPool& pool) {
  const int64_t words = kSize * kSize * bits / 32;
  const int64_t cold = 4 * LastCacheBytes() + (LastCacheBytes() >> 3);
  const int64_t count = cold / (words * 4) + 1;
  if (count * words * 4 > AvailableBytes() / 10 * 9) {
    std::printf("%d bits: not enough memory: %lld MiB needed, %lld available\n", bits,
                static_cast<long long>(count * words * 4 >> 20),
                static_cast<long long>(AvailableBytes() >> 20));
    return;
  }
  std::mt19937_64 random(7);
  std::vector<uint32_t> packed(words);
  for (uint32_t& word : packed) word = static_cast<uint32_t>(random());
  std::vector<uint16_t> lut(kSize << bits);
  for (uint16_t& entry : lut) entry = static_cast<uint16_t>(0x2000 + random() % 0x1800);
  // On a cache line, as libtorch's tensors are.
  const auto x = hwy::AllocateAligned<float>(kSize);
  std::vector<float> y(kSize);
  for (int64_t i = 0; i < kSize; ++i) x[i] = static_cast<float>(random() % 2001) / 1000 - 1;
  std::vector<LutMatrix> matrices;
  // The content is one and the same, its memory is not.
  for (int64_t m = 0; m < count; ++m) matrices.emplace_back(packed, lut, kSize, kSize, bits, &pool);

  std::vector<double> read, read_calls, multiply, ratio;
  const double end = Now() + options.seconds;
  while (Now() < end || ratio.size() < 3) {
    read.push_back(ReadPass(matrices, words, pool));
    multiply.push_back(MultiplyPass(matrices, words, x.get(), y, pool));
    read_calls.push_back(ReadCallsPass(matrices, words, pool));
    ratio.push_back(multiply.back() / read.back());
  }
  std::printf(
      "%d bits: %lld matrices, %.1f GiB packed, read %.1f GB/s (matrix by matrix %.1f), multiply "
      "%.1f GB/s, ratio %.2f (median of %zu)\n",
      bits, static_cast<long long>(count),
      static_cast<double>(count * words * 4) / (int64_t{1} << 30), Median(read), Median(read_calls),
      Median(multiply), Median(ratio), ratio.size());
  if (options.outliers <= 0) return;
  // Half of them with, half without: both halves are far larger than the cache.
  const size_t half = matrices.size() / 2;
  std::vector<LutMatrix> sparse(std::make_move_iterator(matrices.begin() + half),
                                std::make_move_iterator(matrices.begin() + 2 * half));
  matrices.resize(half);
  const SparseRows outliers = RandomOutliers(options.outliers, random);
  for (LutMatrix& matrix : sparse) matrix.SetSparse(outliers);
  RunOutliers(bits, options, matrices, sparse, x.get(), y, pool);
}

int Main(int argc, char** argv) {
  Options options;
  options.threads = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--threads") {
      options.threads = std::max(1, std::atoi(value.c_str()));
    } else if (flag == "--bits") {
      options.bits = std::atoi(value.c_str());
    } else if (flag == "--seconds") {
      options.seconds = std::atof(value.c_str());
    } else if (flag == "--outliers") {
      options.outliers = std::atof(value.c_str());
    } else if (flag == "--target" && (value == "avx512" || value == "avx2")) {
      options.target = value == "avx2" ? HWY_AVX2 : HWY_AVX3;
    } else {
      std::fprintf(
          stderr,
          "usage: lut_matvec [--threads N] [--bits B] [--target avx512|avx2] [--seconds S] "
          "[--outliers PERCENT]\n");
      return 2;
    }
  }
  if (options.target != 0) {
    if (!(hwy::SupportedTargets() & options.target)) {
      std::fprintf(stderr, "this machine lacks the target\n");
      return 1;
    }
    hwy::SetSupportedTargetsForTest(options.target);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  ThreadPool pool(options.threads, absl::Microseconds(200));  // as inference decodes
  const int64_t best = hwy::SupportedTargets() & -hwy::SupportedTargets();
  std::printf("lut_matvec 4096 x 4096, batch 1, %d threads, %s, last-level cache %lld MiB\n",
              options.threads, hwy::TargetName(best),
              static_cast<long long>(LastCacheBytes() >> 20));
  for (int bits = 2; bits <= 4; ++bits) {
    if (options.bits == 0 || options.bits == bits) Run(bits, options, pool);
  }
  return 0;
}

}  // namespace
}  // namespace gradq::kernels

int main(int argc, char** argv) { return gradq::kernels::Main(argc, argv); }
