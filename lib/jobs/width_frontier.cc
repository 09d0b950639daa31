#include "lib/jobs/width_frontier.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

struct Partial {
  int64_t units = 0;  // bits above the least possible, in units, each item rounded up
  int64_t bits = 0;
  double loss = 0;
};

int64_t LeastBits(const WidthItem& item) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const WidthChoice& choice : item) least = std::min(least, choice.bits);
  return least;
}

absl::Status CheckItems(const std::vector<WidthItem>& items) {
  if (items.empty()) return absl::InvalidArgumentError("no linears to choose widths for");
  for (size_t i = 0; i < items.size(); ++i) {
    const bool usable =
        std::any_of(items[i].begin(), items[i].end(),
                    [](const WidthChoice& choice) { return std::isfinite(choice.loss); });
    if (!usable) return absl::InternalError(StrCat("a linear has no price at any width: item ", i));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WidthFrontier> WidthFrontier::Make(const std::vector<WidthItem>& items) {
  GRADQ_RETURN_IF_ERROR(CheckItems(items));
  int64_t range = 0;
  for (const WidthItem& item : items) {
    int64_t most = 0;
    for (const WidthChoice& choice : item) most = std::max(most, choice.bits);
    range += most - LeastBits(item);
  }
  // First in single bits; where that makes too many points, in units that cannot.
  const int64_t room = kMostPoints - static_cast<int64_t>(items.size()) - 1;
  for (const int64_t unit : {int64_t{1}, range / std::max<int64_t>(1, room) + 1}) {
    WidthFrontier frontier;
    std::vector<Partial> layer{Partial{}};
    for (const WidthItem& item : items) {
      const int64_t least = LeastBits(item);
      std::vector<Partial> next;
      std::vector<Step> steps;
      // Merges the layer moved by each choice, in the order of units, loss, choice; keeps what is
      // cheaper than all before it.
      std::vector<size_t> at(item.size(), 0);
      double cheapest = std::numeric_limits<double>::infinity();
      while (true) {
        int best = -1;
        Partial best_sum;
        for (size_t c = 0; c < item.size(); ++c) {
          if (at[c] == layer.size() || !std::isfinite(item[c].loss)) continue;
          const Partial& before = layer[at[c]];
          const Partial sum = {before.units + (item[c].bits - least + unit - 1) / unit,
                               before.bits + item[c].bits, before.loss + item[c].loss};
          if (best < 0 ||
              std::pair(sum.units, sum.loss) < std::pair(best_sum.units, best_sum.loss)) {
            best = static_cast<int>(c);
            best_sum = sum;
          }
        }
        if (best < 0) break;
        if (best_sum.loss < cheapest) {
          cheapest = best_sum.loss;
          next.push_back(best_sum);
          steps.push_back({static_cast<int32_t>(at[best]), static_cast<int8_t>(best)});
        }
        ++at[best];
      }
      layer = std::move(next);
      frontier.steps_.push_back(std::move(steps));
      if (unit == 1 && static_cast<int64_t>(layer.size()) > kMostPoints) break;
    }
    if (frontier.steps_.size() < items.size() || static_cast<int64_t>(layer.size()) > kMostPoints) {
      continue;
    }
    std::vector<Step> last;
    for (size_t i = 0; i < layer.size(); ++i) {
      // Units may hide that a later sum has fewer bits.
      while (!frontier.points_.empty() && frontier.points_.back().bits >= layer[i].bits) {
        frontier.points_.pop_back();
        last.pop_back();
      }
      frontier.points_.push_back({layer[i].bits, layer[i].loss});
      last.push_back(frontier.steps_.back()[i]);
    }
    frontier.steps_.back() = std::move(last);
    return frontier;
  }
  return absl::InternalError("the frontier of widths has too many points");
}

int WidthFrontier::Best(double bits) const {
  const auto beyond = std::upper_bound(
      points_.begin(), points_.end(), bits,
      [](double budget, const Point& point) { return budget < static_cast<double>(point.bits); });
  return static_cast<int>(beyond - points_.begin()) - 1;
}

std::vector<int> WidthFrontier::Choices(int point) const {
  std::vector<int> choices(steps_.size());
  int32_t at = point;
  for (size_t i = steps_.size(); i-- > 0;) {
    choices[i] = steps_[i][at].choice;
    at = steps_[i][at].before;
  }
  return choices;
}

}  // namespace gradq
