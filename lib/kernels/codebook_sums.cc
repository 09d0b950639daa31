#include "lib/kernels/codebook_sums.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/codebook_sums.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace gradq::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Lane = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Lane>;

// sums[0, width) = Σ_{i in the bucket} H[i][first, first + width), kVectors vectors at a time.
template <int kVectors>
HWY_INLINE void BucketStrip(const float* h, int64_t columns, const int32_t* order, int count,
                            int64_t first, float* sums) {
  const Lane d;
  const int64_t lanes = hn::Lanes(d);
  Vector acc[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) acc[v] = hn::Zero(d);
  for (int i = 0; i < count; ++i) {
    const float* row = h + order[i] * columns + first;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[v] = hn::Add(acc[v], hn::LoadU(d, row + v * lanes));
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[v], d, sums + v * lanes);
}

HWY_INLINE void BucketSums(const float* h, int64_t columns, const int32_t* order, int count,
                           int64_t first, int width, float* sums) {
  const Lane d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int at = 0;
  for (; at + 8 * lanes <= width; at += 8 * lanes)
    BucketStrip<8>(h, columns, order, count, first + at, sums + at);
  for (; at + 2 * lanes <= width; at += 2 * lanes)
    BucketStrip<2>(h, columns, order, count, first + at, sums + at);
  for (; at + lanes <= width; at += lanes)
    BucketStrip<1>(h, columns, order, count, first + at, sums + at);
  for (; at < width; ++at) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += h[order[i] * columns + first + at];
    sums[at] = sum;
  }
}

void SumsTarget(const float* h, int64_t columns, const int32_t* order, const int32_t* begin,
                const uint8_t* codes, const float* error, const float* active, int levels,
                float* scratch, double* gram, double* slope) {
  std::fill_n(gram, static_cast<int64_t>(levels) * levels, 0.0);
  std::fill_n(slope, levels, 0.0);
  for (int64_t first = 0; first < columns; first += kCodebookChunk) {
    const int width = static_cast<int>(std::min<int64_t>(kCodebookChunk, columns - first));
    for (int q = 0; q < levels; ++q) {
      const int count = begin[q + 1] - begin[q];
      if (count == 0) continue;
      float* sums = scratch + q * kCodebookChunk;
      BucketSums(h, columns, order + begin[q], count, first, width, sums);
      if (active != nullptr) {
        for (int c = 0; c < width; ++c) sums[c] *= active[first + c];
      }
      double* row = gram + static_cast<int64_t>(q) * levels;
      double dot = 0.0;
      for (int c = 0; c < width; ++c) {
        const double sum = sums[c];
        row[codes[first + c]] += sum;
        dot += sum * static_cast<double>(error[first + c]);
      }
      slope[q] += dot;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradq::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradq::kernels {

HWY_EXPORT(SumsTarget);

void CodebookSums(const float* h, int64_t columns, const int32_t* order, const int32_t* begin,
                  const uint8_t* codes, const float* error, const float* active, int levels,
                  float* scratch, double* gram, double* slope) {
  HWY_DYNAMIC_DISPATCH(SumsTarget)
  (h, columns, order, begin, codes, error, active, levels, scratch, gram, slope);
}

}  // namespace gradq::kernels
#endif
