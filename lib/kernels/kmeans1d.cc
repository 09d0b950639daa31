#include "lib/kernels/kmeans1d.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

namespace gradq::kernels {
namespace {

// Order-preserving map of floats to unsigned integers; -0 and +0 are one value.
uint32_t SortableBits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

// Sorts by the upper 32 bits; three passes of 11 bits once a row is long enough to pay for the
// histograms.
void SortKeys(std::vector<uint64_t>* keys, std::vector<uint64_t>* swap) {
  const size_t n = keys->size();
  if (n < 512) {
    std::sort(keys->begin(), keys->end());
    return;
  }
  constexpr int kDigits = 3, kBits = 11, kBuckets = 1 << kBits;
  std::array<std::array<uint32_t, kBuckets>, kDigits> counts{};
  for (const uint64_t key : *keys) {
    for (int digit = 0; digit < kDigits; ++digit) {
      ++counts[digit][(key >> (32 + digit * kBits)) & (kBuckets - 1)];
    }
  }
  swap->resize(n);
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t offset = 0;
    for (uint32_t& count : counts[digit]) {
      const uint32_t here = count;
      count = offset;
      offset += here;
    }
    for (const uint64_t key : *keys) {
      (*swap)[counts[digit][(key >> (32 + digit * kBits)) & (kBuckets - 1)]++] = key;
    }
    keys->swap(*swap);
  }
}

// Distinct sorted points with their summed weights, and prefix sums with a leading 0. Points are
// taken relative to the weighted mean, which is returned: the sums then don't cancel.
double PreparePoints(std::span<const float> values, std::span<const float> weights,
                     Kmeans1dWorkspace* w) {
  const size_t n = values.size();
  const bool uniform =
      std::all_of(weights.begin(), weights.end(), [](float weight) { return weight == 0.0f; });
  w->keys.clear();
  for (size_t j = 0; j < n; ++j) {
    if (!uniform && weights[j] == 0.0f) continue;
    w->keys.push_back(static_cast<uint64_t>(SortableBits(values[j])) << 32 | j);
  }
  SortKeys(&w->keys, &w->keys_swap);
  w->point.clear();
  w->weight.clear();
  double total = 0.0, first = 0.0;
  for (const uint64_t key : w->keys) {
    const size_t j = key & 0xffffffffu;
    const double weight = uniform ? 1.0 : weights[j];
    const double value = values[j];
    if (!w->point.empty() && w->point.back() == value) {
      w->weight.back() += weight;
    } else {
      w->point.push_back(value);
      w->weight.push_back(weight);
    }
    total += weight;
    first += weight * value;
  }
  const double mean = total > 0.0 ? first / total : 0.0;
  const size_t points = w->point.size();
  w->sum_weight.assign(points + 1, 0.0);
  w->sum_first.assign(points + 1, 0.0);
  w->sum_second.assign(points + 1, 0.0);
  for (size_t i = 0; i < points; ++i) {
    const double x = w->point[i] - mean;
    w->sum_weight[i + 1] = w->sum_weight[i] + w->weight[i];
    w->sum_first[i + 1] = w->sum_first[i] + w->weight[i] * x;
    w->sum_second[i + 1] = w->sum_second[i] + w->weight[i] * x * x;
  }
  return mean;
}

// Layers of the recurrence D_q[i] = min_{j<i} D_{q-1}[j] + cost(j, i), where cost(j, i) is the
// weighted error of points j..i-1 around their mean.
class KmeansLayers {
 public:
  explicit KmeansLayers(Kmeans1dWorkspace* w)
      : w_(*w), points_(static_cast<int>(w->point.size())) {}

  double Cost(int j, int i) const {
    const double weight = w_.sum_weight[i] - w_.sum_weight[j];
    const double first = w_.sum_first[i] - w_.sum_first[j];
    return std::max(0.0, w_.sum_second[i] - w_.sum_second[j] - first * first / weight);
  }

  // D_q[i] for i in [low, high], whose best splits lie in [from, to] (they are monotone in i).
  void Solve(int32_t* split, int low, int high, int from, int to) {
    while (low <= high) {
      const int i = low + (high - low) / 2;
      const int best = Best(i, from, std::min(to, i - 1));
      split[i] = best;
      Solve(split, low, i - 1, from, best);
      low = i + 1;
      from = best;
    }
  }

 private:
  int Best(int i, int from, int to) {
    const double weight = w_.sum_weight[i], first = w_.sum_first[i];
    const double* sum_weight = w_.sum_weight.data();
    const double* sum_first = w_.sum_first.data();
    const double* base = w_.previous.data();  // D_{q-1}[j] - sum_second[j]
    double best_value = std::numeric_limits<double>::infinity();
    int best = from;
    for (int j = from; j <= to; ++j) {
      const double difference = first - sum_first[j];
      const double value = base[j] - difference * difference / (weight - sum_weight[j]);
      if (value < best_value) {
        best_value = value;
        best = j;
      }
    }
    w_.current[i] = best_value;  // D_q[i] - sum_second[i]
    return best;
  }

  Kmeans1dWorkspace& w_;
  int points_;
};

}  // namespace

double OptimalKmeans1d(std::span<const float> values, std::span<const float> weights,
                       std::span<double> centers, Kmeans1dWorkspace* workspace) {
  Kmeans1dWorkspace& w = *workspace;
  const double mean = PreparePoints(values, weights, &w);
  const int n = static_cast<int>(w.point.size());
  const int k = std::min<int>(static_cast<int>(centers.size()), n);
  if (n == 0) {
    std::fill(centers.begin(), centers.end(), 0.0);
    return 0.0;
  }
  KmeansLayers layers(&w);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // previous[j] = D_1[j] - sum_second[j]; entries below the layer can't be reached.
  w.previous.assign(n + 1, kInfinity);
  w.current.assign(n + 1, kInfinity);
  w.split.assign(static_cast<size_t>(k) * (n + 1), 0);
  for (int i = 1; i <= n; ++i) {
    w.previous[i] = -w.sum_first[i] * w.sum_first[i] / w.sum_weight[i];
  }
  for (int q = 2; q <= k; ++q) {
    // Only the last point is asked of the last layer, and every layer leaves at least one point
    // for each that follows.
    const int low = q == k ? n : q;
    const int high = n - (k - q);
    std::fill(w.current.begin(), w.current.end(), kInfinity);
    layers.Solve(w.split.data() + static_cast<size_t>(q - 1) * (n + 1), low, high, q - 1, high - 1);
    w.previous.swap(w.current);
  }
  double error = 0.0;
  int end = n;
  for (int q = k; q >= 1; --q) {
    const int begin = q == 1 ? 0 : w.split[static_cast<size_t>(q - 1) * (n + 1) + end];
    const double weight = w.sum_weight[end] - w.sum_weight[begin];
    centers[q - 1] = mean + (w.sum_first[end] - w.sum_first[begin]) / weight;
    error += layers.Cost(begin, end);
    end = begin;
  }
  std::fill(centers.begin() + k, centers.end(), centers[k - 1]);
  return error;
}

}  // namespace gradq::kernels
