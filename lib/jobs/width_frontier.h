#pragma once

// Which width for which linear: the exact frontier of stored bits against predicted loss increase,
// and the best choice under a budget. A dynamic programme over the items; each item takes one of
// its choices. Pure, deterministic. Called by decide.cc and for GetFrontier.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

struct WidthChoice {
  int64_t bits = 0;  // stored
  double loss = 0;   // predicted increase, nats per token; not finite: not to be chosen
};
// One linear, or several that share a width. All items have as many choices.
using WidthItem = std::vector<WidthChoice>;

class WidthFrontier {
 public:
  struct Point {
    int64_t bits = 0;
    double loss = 0;
  };

  // INTERNAL: an item without a choice of finite loss. INVALID_ARGUMENT: no items.
  static absl::StatusOr<WidthFrontier> Make(const std::vector<WidthItem>& items);

  // Rising bits, falling loss: no choice is better in one and not worse in the other. Exact, unless
  // it would have more than kMostPoints points: then bits are counted in units so large that it has
  // not, each item rounded up, and a point may be beaten by one unit per item.
  static constexpr int64_t kMostPoints = int64_t{1} << 18;
  const std::vector<Point>& points() const { return points_; }
  // Index of the last point with at most so many bits; -1: there is none.
  int Best(double bits) const;
  // The choice of every item at a point.
  std::vector<int> Choices(int point) const;

 private:
  // How a partial sum came about.
  struct Step {
    int32_t before = 0;
    int8_t choice = 0;
  };
  std::vector<Point> points_;
  std::vector<std::vector<Step>> steps_;  // by item, then by point of its layer
};

}  // namespace gradq
