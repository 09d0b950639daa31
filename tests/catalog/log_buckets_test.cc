#include "lib/catalog/log_buckets.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>

namespace gradq {
namespace {

TEST(LogBuckets, EdgeIsTheLeastNumberOfItsBucket) {
  for (int bucket = -65408; bucket <= 65535; ++bucket) {
    const double edge = LogBucketEdge(bucket);
    ASSERT_EQ(LogBucket(edge), bucket) << edge;
    if (bucket == -65408) continue;
    ASSERT_EQ(LogBucket(std::nextafter(edge, 0.0)), bucket - 1) << edge;
  }
}

// 2^(i/64) to the 64th power is 2^i: the exact root lies between the edge and its neighbour below.
TEST(LogBuckets, EdgesAreTheRootsOfTwoRoundedUp) {
  for (int i = 1; i < 64; ++i) {
    const auto power = [](long double x) {
      for (int doubling = 0; doubling < 6; ++doubling) x *= x;
      return x;
    };
    const double edge = LogBucketEdge(i);
    const long double exact = std::ldexp(1.0L, i);
    EXPECT_GE(power(edge) / exact, 1.0L - 64 * 64 * LDBL_EPSILON) << i;
    EXPECT_LE(power(std::nextafter(edge, 0.0)) / exact, 1.0L + 64 * 64 * LDBL_EPSILON) << i;
  }
}

TEST(LogBuckets, KnownValues) {
  EXPECT_EQ(LogBucket(1.0), 0);
  EXPECT_EQ(LogBucket(2.0), 64);
  EXPECT_EQ(LogBucket(0.5), -64);
  EXPECT_EQ(LogBucket(1.5), 37);  // 64 · log2(1.5) = 37.4
  EXPECT_EQ(LogBucket(static_cast<double>(std::numeric_limits<float>::denorm_min())), -149 * 64);
  EXPECT_EQ(LogBucketEdge(-3 * 64), 0.125);
}

}  // namespace
}  // namespace gradq
