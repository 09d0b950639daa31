#include "lib/solvers/outlier_policy.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "lib/solvers/outliers/policies.h"

namespace gradq {
namespace {

absl::StatusOr<std::vector<uint8_t>> ChooseNone(std::string_view, const LayerProblem&,
                                                const OptionMap&, const OutlierDecision&,
                                                const SolveContext&, SolveRecord*) {
  return std::vector<uint8_t>();
}

constexpr OutlierPolicyBinding kBindings[] = {
    {"none", nullptr, ChooseNone},
    {"gwq", GwqScores, ChooseGwq},
    {"squeezellm", nullptr, ChooseSqueezellm},
    {"pqi", nullptr, ChoosePqi},
};

}  // namespace

std::span<const OutlierPolicyBinding> OutlierPolicyBindings() { return kBindings; }

int64_t OutlierCount(double fraction, int64_t weights) {
  const double wanted = std::floor(fraction * static_cast<double>(weights) + 0.5);
  return std::clamp<int64_t>(static_cast<int64_t>(wanted), 0, weights);
}

std::vector<uint8_t> TopScores(std::span<const float> scores, int64_t count) {
  std::vector<uint8_t> mask(scores.size(), 0);
  if (count <= 0) return mask;
  count = std::min<int64_t>(count, static_cast<int64_t>(scores.size()));
  std::vector<float> sorted(scores.begin(), scores.end());
  std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<>());
  const float least = sorted[count - 1];
  int64_t left = count;
  for (const float score : scores) left -= score > least;
  for (size_t i = 0; i < scores.size(); ++i) {
    const bool tied = scores[i] == least && left > 0;
    left -= tied;
    mask[i] = scores[i] > least || tied;
  }
  return mask;
}

std::vector<uint8_t> ScoresFrom(std::span<const float> scores, double threshold) {
  std::vector<uint8_t> mask(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    mask[i] = static_cast<double>(scores[i]) >= threshold;
  }
  return mask;
}

double LeastChosen(std::span<const float> scores, std::span<const uint8_t> mask) {
  float least = HUGE_VALF;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (mask[i] != 0) least = std::min(least, scores[i]);
  }
  return least;
}

}  // namespace gradq
