#include "lib/kernels/error_feedback.h"

#include <algorithm>
#include <cmath>

#include "lib/base/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/error_feedback.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// out[r] = Σ_{k < length} a[k] · b[r·stride + k], r = 0..3, in 8 lanes whatever the machine's
// width.
void DotsTarget(const double* a, const double* b, int64_t stride, int64_t length, double* out) {
  const hn::CappedTag<double, 8> d;
  const int64_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t k = 0;
  for (; k + lanes <= length; k += lanes) {
    const auto x = hn::LoadU(d, a + k);
    s0 = hn::MulAdd(x, hn::LoadU(d, b + k), s0);
    s1 = hn::MulAdd(x, hn::LoadU(d, b + stride + k), s1);
    s2 = hn::MulAdd(x, hn::LoadU(d, b + 2 * stride + k), s2);
    s3 = hn::MulAdd(x, hn::LoadU(d, b + 3 * stride + k), s3);
  }
  out[0] = hn::GetLane(hn::SumOfLanes(d, s0));
  out[1] = hn::GetLane(hn::SumOfLanes(d, s1));
  out[2] = hn::GetLane(hn::SumOfLanes(d, s2));
  out[3] = hn::GetLane(hn::SumOfLanes(d, s3));
  for (; k < length; ++k) {
    for (int r = 0; r < 4; ++r) out[r] += a[k] * b[r * stride + k];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {

HWY_EXPORT(DotsTarget);

namespace {

constexpr int64_t kBlock = 64;

// Columns [first, last) of row i minus what the columns before `first` explain.
void SubtractExplained(double* matrix, int64_t n, int64_t i, int64_t first, int64_t last) {
  double* row = matrix + i * n;
  last = std::min(last, i + 1);
  double dots[4];
  for (int64_t j = first; j < last; j += 4) {
    // Always four rows; n > kBlock where this is called.
    const int64_t from = std::min(j, n - 4);
    HWY_DYNAMIC_DISPATCH(DotsTarget)(row, matrix + from * n, n, first, dots);
    for (int64_t c = j; c < std::min(j + 4, last); ++c) row[c] -= dots[c - from];
  }
}

// Lower Cholesky factor in place; false at the first pivot that is not positive.
bool Cholesky(double* matrix, int64_t n, ThreadPool* pool) {
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(first + kBlock, n);
    const int64_t strips = (n - first + kBlock - 1) / kBlock;
    if (first > 0) {
      pool->ParallelFor(strips, [&](int64_t strip, int) {
        const int64_t begin = first + strip * kBlock, end = std::min(begin + kBlock, n);
        for (int64_t i = begin; i < end; ++i) SubtractExplained(matrix, n, i, first, last);
      });
    }
    for (int64_t i = first; i < last; ++i) {
      for (int64_t j = first; j <= i; ++j) {
        double sum = matrix[i * n + j];
        for (int64_t k = first; k < j; ++k) sum -= matrix[i * n + k] * matrix[j * n + k];
        if (i != j) {
          matrix[i * n + j] = sum / matrix[j * n + j];
        } else if (sum > 0.0) {
          matrix[i * n + i] = std::sqrt(sum);
        } else {
          return false;
        }
      }
    }
    if (last == n) break;
    pool->ParallelFor(strips, [&](int64_t strip, int) {
      const int64_t begin = std::max(last, first + strip * kBlock);
      const int64_t end = std::min(first + (strip + 1) * kBlock, n);
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = first; j < last; ++j) {
          double sum = matrix[i * n + j];
          for (int64_t k = first; k < j; ++k) sum -= matrix[i * n + k] * matrix[j * n + k];
          matrix[i * n + j] = sum / matrix[j * n + j];
        }
      }
    });
  }
  return true;
}

}  // namespace

bool FeedbackFactor(const float* h, int64_t columns, double load, std::span<const int32_t> order,
                    ThreadPool* pool, std::vector<float>* factor) {
  // U D Uᵀ of H is the Cholesky factor of H with rows and columns reversed.
  const int64_t n = columns;
  std::vector<double> lower(n * n, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    const float* row = h + static_cast<int64_t>(order[n - 1 - i]) * n;
    for (int64_t j = 0; j <= i; ++j) lower[i * n + j] = row[order[n - 1 - j]];
    lower[i * n + i] += load;
  }
  if (!Cholesky(lower.data(), n, pool)) return false;
  factor->assign(n * n, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      (*factor)[(n - 1 - i) * n + (n - 1 - j)] =
          static_cast<float>(lower[i * n + j] / lower[j * n + j]);
    }
  }
  return true;
}

bool InverseDiagonal(const float* h, int64_t columns, double load, ThreadPool* pool,
                     std::vector<double>* diagonal) {
  const int64_t n = columns;
  std::vector<double> lower(h, h + n * n);
  for (int64_t i = 0; i < n; ++i) lower[i * n + i] += load;
  if (!Cholesky(lower.data(), n, pool)) return false;
  diagonal->assign(n, 0.0);
  // Four columns of L⁻¹ at a time, each as a row of `inverse`; [H⁻¹]_jj is column j's square norm.
  constexpr int64_t kTogether = 4;
  std::vector<std::vector<double>> inverses(pool->threads());
  pool->ParallelFor((n + kTogether - 1) / kTogether, [&](int64_t task, int worker) {
    std::vector<double>& inverse = inverses[worker];
    const int64_t first = task * kTogether, count = std::min(kTogether, n - first);
    inverse.assign(kTogether * n, 0.0);
    for (int64_t i = first; i < n; ++i) {
      double dots[kTogether];
      HWY_DYNAMIC_DISPATCH(DotsTarget)
      (lower.data() + i * n + first, inverse.data() + first, n, i - first, dots);
      for (int64_t c = 0; c < count; ++c) {
        const double x = ((i == first + c ? 1.0 : 0.0) - dots[c]) / lower[i * n + i];
        inverse[c * n + i] = x;
        (*diagonal)[first + c] += x * x;
      }
    }
  });
  return true;
}

}  // namespace gradq::kernels
#endif
