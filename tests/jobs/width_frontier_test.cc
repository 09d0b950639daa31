#include "lib/jobs/width_frontier.h"

#include <cmath>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gradq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Sum {
  int64_t bits = 0;
  double loss = 0;
};

// All choices of all items.
std::vector<Sum> AllSums(const std::vector<WidthItem>& items) {
  std::vector<Sum> sums{Sum{}};
  for (const WidthItem& item : items) {
    std::vector<Sum> next;
    for (const Sum& sum : sums) {
      for (const WidthChoice& choice : item) {
        if (std::isfinite(choice.loss))
          next.push_back({sum.bits + choice.bits, sum.loss + choice.loss});
      }
    }
    sums = std::move(next);
  }
  return sums;
}

double BestLoss(const std::vector<Sum>& sums, int64_t bits) {
  double best = std::numeric_limits<double>::infinity();
  for (const Sum& sum : sums) {
    if (sum.bits <= bits) best = std::min(best, sum.loss);
  }
  return best;
}

Sum SumOf(const std::vector<WidthItem>& items, const std::vector<int>& choices) {
  Sum sum;
  for (size_t i = 0; i < items.size(); ++i) {
    sum.bits += items[i][choices[i]].bits;
    sum.loss += items[i][choices[i]].loss;
  }
  return sum;
}

TEST(WidthFrontier, IsThatOfAllChoices) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<WidthItem> items(1 + random() % 7);
    for (WidthItem& item : items) {
      // Few sizes, so that sums meet; prices not always falling, sometimes negative or missing.
      const int64_t size = 10 + static_cast<int64_t>(random() % 3);
      for (int bits = 2; bits <= 4; ++bits) {
        double loss = static_cast<double>(random() % 100) / (1 << bits) - 2;
        if (random() % 8 == 0) loss = std::numeric_limits<double>::quiet_NaN();
        item.push_back({bits * size, loss});
      }
      if (std::none_of(item.begin(), item.end(),
                       [](const auto& c) { return std::isfinite(c.loss); }))
        item[1].loss = 1;
    }
    const std::vector<Sum> all = AllSums(items);
    const auto frontier = WidthFrontier::Make(items);
    ASSERT_TRUE(frontier.ok()) << frontier.status();
    const auto& points = frontier->points();
    for (size_t p = 0; p < points.size(); ++p) {
      if (p > 0) {
        EXPECT_GT(points[p].bits, points[p - 1].bits);
        EXPECT_LT(points[p].loss, points[p - 1].loss);
      }
      EXPECT_NEAR(points[p].loss, BestLoss(all, points[p].bits), 1e-12);
      const Sum sum = SumOf(items, frontier->Choices(static_cast<int>(p)));
      EXPECT_EQ(sum.bits, points[p].bits);
      EXPECT_NEAR(sum.loss, points[p].loss, 1e-12);
    }
    // Nothing is left out: at any budget the frontier's best is the best of all.
    for (int64_t budget = 0; budget < 350; ++budget) {
      const int at = frontier->Best(static_cast<double>(budget));
      const double best = BestLoss(all, budget);
      if (at < 0) {
        EXPECT_TRUE(std::isinf(best)) << budget;
      } else {
        EXPECT_NEAR(points[at].loss, best, 1e-12) << budget;
      }
    }
  }
}

TEST(WidthFrontier, TiesTakeTheFirstChoice) {
  // Equal in bits and loss: the lower choice; equal in loss: the fewer bits.
  const auto frontier = WidthFrontier::Make({{{4, 1.0}, {4, 1.0}, {6, 1.0}}});
  ASSERT_EQ(frontier->points().size(), 1u);
  EXPECT_EQ(frontier->points()[0].bits, 4);
  EXPECT_THAT(frontier->Choices(0), ElementsAre(0));
}

TEST(WidthFrontier, CoarseUnitsStayWithinTheBudgetAndNearTheBest) {
  // Loss falls by one per bit and every sum up to 2^25 occurs: no point beats another one.
  std::vector<WidthItem> items(24);
  for (size_t i = 0; i < items.size(); ++i) {
    for (const int64_t bits : {int64_t{0}, int64_t{1} << i, int64_t{2} << i}) {
      items[i].push_back({bits, -static_cast<double>(bits)});
    }
  }
  const auto frontier = WidthFrontier::Make(items);
  ASSERT_TRUE(frontier.ok()) << frontier.status();
  EXPECT_LE(static_cast<int64_t>(frontier->points().size()), WidthFrontier::kMostPoints);
  EXPECT_GT(static_cast<int64_t>(frontier->points().size()), WidthFrontier::kMostPoints / 4);
  const double unit = std::ldexp(1, 25) / static_cast<double>(WidthFrontier::kMostPoints) + 1;
  for (const double budget : {1e6, 12345678.0, 3e7}) {
    const int at = frontier->Best(budget);
    const Sum sum = SumOf(items, frontier->Choices(at));
    EXPECT_EQ(sum.bits, frontier->points()[at].bits);
    EXPECT_LE(static_cast<double>(sum.bits), budget);
    EXPECT_LE(sum.loss, -budget + unit * static_cast<double>(items.size() + 1));
  }
}

TEST(WidthFrontier, RefusesWhatHasNoPrice) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(
      std::string(WidthFrontier::Make({{{4, 1.0}}, {{2, nan}, {3, nan}}}).status().message()),
      HasSubstr("item 1"));
  EXPECT_FALSE(WidthFrontier::Make({}).ok());
  EXPECT_EQ(WidthFrontier::Make({{{4, 1.0}}})->Best(3.9), -1);
}

}  // namespace
}  // namespace gradq
