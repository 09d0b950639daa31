#include "lib/catalog/log_buckets.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <iterator>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

constexpr int kPerOctave = 64;

// The least double not below 2^(i/64): none but the first is a double itself, so rounding upwards
// keeps every comparison with it exact.
constexpr double kEdges[kPerOctave] = {
    0x1.0000000000000p0, 0x1.02c9a3e778061p0, 0x1.059b0d3158575p0, 0x1.0874518759bc9p0,
    0x1.0b5586cf98910p0, 0x1.0e3ec32d3d1a3p0, 0x1.11301d0125b51p0, 0x1.1429aaea92de0p0,
    0x1.172b83c7d517bp0, 0x1.1a35beb6fcb76p0, 0x1.1d4873168b9abp0, 0x1.2063b88628cd7p0,
    0x1.2387a6e756239p0, 0x1.26b4565e27cdep0, 0x1.29e9df51fdee2p0, 0x1.2d285a6e4030cp0,
    0x1.306fe0a31b716p0, 0x1.33c08b2641700p0, 0x1.371a7373aa9cbp0, 0x1.3a7db34e59ff7p0,
    0x1.3dea64c123423p0, 0x1.4160a21f72e2ap0, 0x1.44e086061892ep0, 0x1.486a2b5c13cd1p0,
    0x1.4bfdad5362a28p0, 0x1.4f9b2769d2ca7p0, 0x1.5342b569d4f82p0, 0x1.56f4736b527dbp0,
    0x1.5ab07dd48542ap0, 0x1.5e76f15ad2149p0, 0x1.6247eb03a5585p0, 0x1.6623882552225p0,
    0x1.6a09e667f3bcdp0, 0x1.6dfb23c651a2fp0, 0x1.71f75e8ec5f74p0, 0x1.75feb564267c9p0,
    0x1.7a11473eb0187p0, 0x1.7e2f336cf4e63p0, 0x1.82589994cce13p0, 0x1.868d99b4492edp0,
    0x1.8ace5422aa0dcp0, 0x1.8f1ae99157737p0, 0x1.93737b0cdc5e5p0, 0x1.97d829fde4e50p0,
    0x1.9c49182a3f091p0, 0x1.a0c667b5de565p0, 0x1.a5503b23e255dp0, 0x1.a9e6b5579fdc0p0,
    0x1.ae89f995ad3aep0, 0x1.b33a2b84f15fbp0, 0x1.b7f76f2fb5e47p0, 0x1.bcc1e904bc1d3p0,
    0x1.c199bdd85529dp0, 0x1.c67f12e57d14cp0, 0x1.cb720dcef906ap0, 0x1.d072d4a07897cp0,
    0x1.d5818dcfba488p0, 0x1.da9e603db3286p0, 0x1.dfc97337b9b5fp0, 0x1.e502ee78b3ff7p0,
    0x1.ea4afa2a490dap0, 0x1.efa1bee615a28p0, 0x1.f50765b6e4541p0, 0x1.fa7c1819e90d9p0};

}  // namespace

int LogBucket(double value) {
  GRADQ_CHECK(value >= DBL_MIN && value <= DBL_MAX);
  int exponent = 0;
  const double mantissa = 2 * std::frexp(value, &exponent);  // in [1, 2)
  const double* above = std::upper_bound(std::begin(kEdges), std::end(kEdges), mantissa);
  return (exponent - 1) * kPerOctave + static_cast<int>(above - std::begin(kEdges)) - 1;
}

double LogBucketEdge(int bucket) {
  const int within = (bucket % kPerOctave + kPerOctave) % kPerOctave;
  const int octave = (bucket - within) / kPerOctave;
  GRADQ_CHECK(octave >= DBL_MIN_EXP - 1 && octave < DBL_MAX_EXP);
  return std::ldexp(kEdges[within], octave);
}

}  // namespace gradq
