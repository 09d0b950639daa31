#include <cmath>
#include <cstddef>
#include <vector>

#include "lib/kernels/token_products.h"
#include "lib/kernels/triangle.h"

namespace gradq::kernels::reference {

void AccumulateFisherBlocks(const float* x, const float* dz, int64_t tokens, int64_t columns,
                            std::span<const int64_t> group_begin, float scale,
                            float* const* packed) {
  const int64_t out = group_begin.back();
  std::vector<double> s(tokens);
  for (size_t k = 0; k + 1 < group_begin.size(); ++k) {
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t j = group_begin[k]; j < group_begin[k + 1]; ++j) {
        const double g = static_cast<double>(scale) * dz[t * out + j];
        sum += g * g;
      }
      s[t] = sum / static_cast<double>(group_begin[k + 1] - group_begin[k]);
    }
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = 0;
        for (int64_t t = 0; t < tokens; ++t) sum += s[t] * x[t * columns + i] * x[t * columns + j];
        packed[k][TriangleRow(i) + j] += static_cast<float>(sum);
      }
    }
  }
}

namespace {

// sums += of(dzᵀX) of each sequence, element by element.
template <typename Of>
void AddPerSequence(const float* x, const float* dz, int64_t sequences, int64_t length, int64_t in,
                    int64_t out, float* sums, Of of) {
  for (int64_t n = 0; n < sequences; ++n) {
    for (int64_t j = 0; j < out; ++j) {
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t t = n * length; t < (n + 1) * length; ++t) {
          sum += static_cast<double>(dz[t * out + j]) * x[t * in + i];
        }
        sums[j * in + i] += static_cast<float>(of(sum));
      }
    }
  }
}

}  // namespace

void AccumulateSquaredGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                                int64_t in, int64_t out, float* sums) {
  AddPerSequence(x, dz, sequences, length, in, out, sums, [](double g) { return g * g; });
}

void AccumulateGradients(const float* x, const float* dz, int64_t sequences, int64_t length,
                         int64_t in, int64_t out, bool absolute, float scale, float* sums) {
  AddPerSequence(x, dz, sequences, length, in, out, sums,
                 [&](double g) { return scale * (absolute ? std::fabs(g) : g); });
}

}  // namespace gradq::kernels::reference
