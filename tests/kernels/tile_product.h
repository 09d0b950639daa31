#pragma once

// What a product with a packed linear must be, in fp64 from the exact weights of a TileProblem, and
// how far a kernel may be from it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/kernels/float16.h"
#include "lib/kernels/queue.h"
#include "tests/kernels/tile_problem.h"

namespace gradq::kernels {

inline float ValueOf(FloatType type, uint16_t bits) {
  return type == FloatType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}
inline uint16_t BitsOf(FloatType type, float value) {
  return type == FloatType::kFloat16 ? FloatToFloat16(value) : FloatToBFloat16(value);
}

// Distance of `type` to the next larger number at `value`.
inline double UlpOf(FloatType type, double value) {
  const int digits = type == FloatType::kFloat16 ? 10 : 7;
  const int least = type == FloatType::kFloat16 ? -14 : -126;
  const int exponent = value == 0 ? least : std::max(least, std::ilogb(value));
  return std::ldexp(1., exponent - digits);
}

struct TileProduct {
  FloatType type = FloatType::kFloat16;
  int64_t batch = 1;
  std::vector<uint16_t> x;        // [batch, in]
  std::vector<uint16_t> bias;     // [out], or empty
  std::vector<double> y;          // [batch, out]
  std::vector<double> magnitude;  // sum of |weight · x|
};

// x is normal. `x_value` null, or called as x_value(token, column, &value) to change x.
template <class XValue>
TileProduct MakeTileProduct(const TileProblem& problem, int64_t batch, FloatType type, bool bias,
                            const XValue& x_value) {
  const int64_t out = problem.matrix.view().out_features;
  const int64_t in = problem.matrix.view().in_features;
  TileProduct product;
  product.type = type;
  product.batch = batch;
  std::mt19937 random(static_cast<uint32_t>(batch * 31 + out + in));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < batch * in; ++i) {
    float value = normal(random);
    x_value(i / in, i % in, &value);
    product.x.push_back(BitsOf(type, value));
  }
  for (int64_t r = 0; bias && r < out; ++r) product.bias.push_back(BitsOf(type, normal(random)));
  const std::vector<double> weights = problem.WithOutliers(in);
  std::vector<double> x(product.x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = ValueOf(type, product.x[i]);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t r = 0; r < out; ++r) {
      double sum = bias ? ValueOf(type, product.bias[r]) : 0.;
      double magnitude = 0;
      for (int64_t c = 0; c < in; ++c) {
        const double term = weights[r * in + c] * x[b * in + c];
        sum += term;
        magnitude += std::abs(term);
      }
      product.y.push_back(sum);
      product.magnitude.push_back(magnitude);
    }
  }
  return product;
}
inline TileProduct MakeTileProduct(const TileProblem& problem, int64_t batch, FloatType type,
                                   bool bias) {
  return MakeTileProduct(problem, batch, type, bias, [](int64_t, int64_t, float*) {});
}

// |y - exact| <= 1e-3 · sum |weight · x| + 1 ulp, for every output; non-finite where the exact
// result is, and only there.
inline testing::AssertionResult IsProduct(const std::vector<uint16_t>& y,
                                          const TileProduct& exact) {
  if (y.size() != exact.y.size()) return testing::AssertionFailure() << "size " << y.size();
  const int64_t out = std::ssize(y) / exact.batch;
  for (size_t i = 0; i < y.size(); ++i) {
    const double value = ValueOf(exact.type, y[i]);
    const bool finite = std::isfinite(exact.y[i]);
    const double allowed = 1e-3 * exact.magnitude[i] + UlpOf(exact.type, exact.y[i]);
    if (finite ? std::abs(value - exact.y[i]) <= allowed : !std::isfinite(value)) continue;
    return testing::AssertionFailure()
           << "token " << i / out << ", row " << i % out << ": " << value << " instead of "
           << exact.y[i] << ", allowed " << allowed;
  }
  return testing::AssertionSuccess();
}

}  // namespace gradq::kernels
