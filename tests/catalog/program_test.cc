#include "lib/catalog/program.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Recipe Resolved(Recipe recipe) { return *ResolveRecipe(std::move(recipe)); }

TEST(GaussLegendre, IntegratesPolynomialsOfDegreeTwoNMinusOne) {
  for (int n = 1; n <= 16; ++n) {
    const std::vector<PathNode> nodes = GaussLegendre(n);
    ASSERT_EQ(nodes.size(), static_cast<size_t>(n));
    for (int degree = 0; degree < 2 * n; ++degree) {
      double integral = 0;
      for (const PathNode& node : nodes) integral += node.coefficient * std::pow(node.t, degree);
      EXPECT_NEAR(integral, 1.0 / (degree + 1), 1e-13) << n << " " << degree;
    }
    double beyond = 0;
    for (const PathNode& node : nodes) beyond += node.coefficient * std::pow(node.t, 2 * n);
    if (n < 5) {
      EXPECT_GT(std::fabs(beyond - 1.0 / (2 * n + 1)), 1e-9) << n;
    }
    for (int i = 1; i < n; ++i) EXPECT_GT(nodes[i].t, nodes[i - 1].t);
  }
}

TEST(Program, MostJobsAreOneRound) {
  const auto rounds = *MakeProgram(Resolved({}), 64);
  ASSERT_EQ(rounds.size(), 1u);
  EXPECT_THAT(rounds[0].statistics, ElementsAre(kFisherBlocks));
  EXPECT_TRUE(rounds[0].backward);
  EXPECT_EQ(rounds[0].statistics_round, 0);
  EXPECT_EQ(rounds[0].decision, RoundDecision::kNone);
  Recipe rtn;
  rtn.method = "rtn";
  const auto without = *MakeProgram(Resolved(rtn), 64);
  EXPECT_THAT(without[0].nodes, IsEmpty());
  EXPECT_EQ(without[0].statistics_round, -1);
}

TEST(Program, CoupledHoldsWindowsOutAndChooses) {
  Recipe recipe;
  recipe.objective = Objective::kCoupled;
  const auto rounds = *MakeProgram(Resolved(recipe), 64);
  ASSERT_EQ(rounds.size(), 3u);
  EXPECT_TRUE(rounds[0].pilot);
  EXPECT_EQ(rounds[0].sequences, 48);
  EXPECT_EQ(rounds[1].first_sequence, 48);
  EXPECT_EQ(rounds[1].sequences, 16);
  EXPECT_EQ(rounds[1].nodes.size(), static_cast<size_t>(rounds[0].variants));
  EXPECT_FALSE(rounds[1].backward);
  // The chosen one has all windows again.
  EXPECT_FALSE(rounds[2].pilot);
  EXPECT_EQ(rounds[2].sequences, 64);
  EXPECT_EQ(rounds[2].variants, 1);
  EXPECT_EQ(rounds[2].statistics_round, 2);
  EXPECT_EQ(FinalRound(rounds), 2);
  EXPECT_EQ(VariantDecisionOf(rounds, 0), 1);
  EXPECT_EQ(VariantDecisionOf(rounds, 2), -1);
  // At most half of the windows.
  EXPECT_EQ((*MakeProgram(Resolved(recipe), 6))[1].sequences, 3);
  EXPECT_THAT(std::string(MakeProgram(Resolved(recipe), 1).status().message()),
              HasSubstr("hold one out for the shrinkage: 1"));
}

TEST(Program, PqiRequantizesThenDetaches) {
  Recipe recipe;
  recipe.method = "squeezellm";
  recipe.outliers = "pqi";
  const auto rounds = *MakeProgram(Resolved(recipe), 64);
  ASSERT_EQ(rounds.size(), 4u);
  EXPECT_EQ(rounds[1].purpose, "requantize");
  EXPECT_EQ(rounds[1].decision, RoundDecision::kShares);
  EXPECT_EQ(rounds[1].statistics_round, 0);
  EXPECT_EQ(rounds[2].weights_round, 1);
  EXPECT_EQ(rounds[3].weights_round, 2);
  EXPECT_EQ(rounds[3].solve, RoundSolve::kDetach);
  EXPECT_EQ(rounds[3].statistics_round, 3);
  EXPECT_EQ(FinalRound(rounds), 3);
  // Nodes with gradients first, then both ends for their loss alone.
  ASSERT_EQ(rounds[1].nodes.size(), 5u);
  EXPECT_EQ(rounds[1].nodes[3], (PathNode{-1, 1, 0}));
  EXPECT_EQ(rounds[1].nodes[4], (PathNode{-1, 0, 0}));
  recipe.outlier_options = {{"detach_fraction", "0"}};
  EXPECT_EQ(MakeProgram(Resolved(recipe), 64)->size(), 2u);
  recipe.outlier_options = {{"detach_fraction", "0.0045"}, {"steps", "1"}};
  EXPECT_EQ(MakeProgram(Resolved(recipe), 64)->size(), 2u);
}

TEST(Program, MixedWidthsArePricedByGradientsWhateverTheObjective) {
  Recipe recipe;
  recipe.objective = Objective::kPlain;
  recipe.average_bits = 3.0;
  const auto rounds = *MakeProgram(Resolved(recipe), 64);
  ASSERT_EQ(rounds.size(), 1u);
  EXPECT_THAT(rounds[0].statistics, ElementsAre(kFisherBlocks, kGram));
  EXPECT_TRUE(rounds[0].backward);
  EXPECT_EQ(rounds[0].variants, 3);
  EXPECT_EQ(rounds[0].decision, RoundDecision::kWidths);
  EXPECT_EQ(VariantDecisionOf(rounds, 0), 0);
}

TEST(Program, GwqTakesFewWindowsAndAThresholdBeyondOneLinear) {
  Recipe recipe;
  recipe.method = "rtn";
  recipe.outliers = "gwq";
  const auto linear = *MakeProgram(Resolved(recipe), 64);
  EXPECT_EQ(linear[0].gradient_sequences, 1);
  EXPECT_FALSE(linear[0].score);
  recipe.outlier_options = {{"scope", "model"}, {"samples", "65"}};
  EXPECT_THAT(std::string(MakeProgram(Resolved(recipe), 64).status().message()),
              HasSubstr("65, 64"));
  recipe.outlier_options = {{"scope", "block"}};
  const auto block = *MakeProgram(Resolved(recipe), 64);
  EXPECT_TRUE(block[0].score);
  EXPECT_EQ(block[0].decision, RoundDecision::kThreshold);
}

}  // namespace
}  // namespace gradq
