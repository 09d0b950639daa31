#pragma once

// Logarithmic buckets of positive numbers, 64 to a factor of two: workers sort the scores of a
// linear into them, the coordinator finds a global threshold in the sum of the histograms. No libm,
// so that bucket and edge agree bit for bit on every machine. Any thread.

namespace gradq {

// floor(64 · log2(value)), exactly. `value` positive, finite and not subnormal.
int LogBucket(double value);

// The least double of `bucket`: LogBucket(v) >= b holds exactly where v >= LogBucketEdge(b).
// `bucket` in [-65408, 65535].
double LogBucketEdge(int bucket);

}  // namespace gradq
