#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/catalog/groups.h"
#include "lib/catalog/options.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/quantizers.h"
#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

OptionMap Resolve(const QuantizerRow& row, const OptionMap& given = {}) {
  const auto options = ResolveOptions(row.name, row.options, given);
  EXPECT_TRUE(options.ok()) << options.status();
  return options.ok() ? *options : OptionMap{};
}

TEST(Groups, FirstGroupsAreLonger) {
  const GroupPartition groups{.rows = 10, .groups = 4};
  EXPECT_EQ(groups.size(0), 3);
  EXPECT_EQ(groups.size(1), 3);
  EXPECT_EQ(groups.size(3), 2);
  EXPECT_EQ(groups.begin(4), 10);
  for (int64_t rows : {1, 7, 96, 688}) {
    for (int g : {1, 3, 5, 64}) {
      if (g > rows) continue;
      const GroupPartition p{.rows = rows, .groups = g};
      int64_t row = 0;
      for (int k = 0; k < g; ++k) {
        for (; row < p.begin(k + 1); ++row)
          ASSERT_EQ(p.group_of(row), k) << rows << " " << g << " " << row;
      }
      EXPECT_EQ(row, rows);
    }
  }
}

TEST(Options, DefaultsAndOneSpelling) {
  const QuantizerRow& lnq = **FindQuantizer("lnq");
  const OptionMap defaults = Resolve(lnq);
  EXPECT_EQ(defaults.size(), lnq.options.size());
  EXPECT_EQ(OptionInt(defaults, "cycles"), 4);
  EXPECT_EQ(OptionInt(defaults, "iterations"), 3);
  EXPECT_EQ(OptionWord(defaults, "solver"), "best");
  const OptionMap given = Resolve(lnq, {{"iterations", "007"}, {"solver", "published"}});
  EXPECT_EQ(OptionInt(given, "iterations"), 7);
  EXPECT_EQ(given, Resolve(lnq, {{"iterations", "7"}, {"solver", "published"}}));
}

TEST(Options, RefusesWithNameAndValue) {
  const QuantizerRow& lnq = **FindQuantizer("lnq");
  const auto message = [&](const OptionMap& given) {
    return std::string(ResolveOptions(lnq.name, lnq.options, given).status().message());
  };
  EXPECT_THAT(message({{"itertions", "3"}}),
              AllOf(HasSubstr("itertions"), HasSubstr("did you mean iterations?")));
  EXPECT_THAT(message({{"iterations", "0"}}),
              AllOf(HasSubstr("iterations"), HasSubstr("1..100"), HasSubstr("0")));
  for (const char* bad : {"101", "3.5", "", "3x", " 3", "99999999999999999999", "-1"}) {
    EXPECT_THAT(message({{"cycles", bad}}), HasSubstr("cycles")) << bad;
  }
  EXPECT_THAT(message({{"solver", "fast"}}), AllOf(HasSubstr("best|published"), HasSubstr("fast")));
  EXPECT_THAT(message({{"solver", ""}}), HasSubstr("solver"));
}

TEST(Options, Doubles) {
  const OptionSpec spec[] = {{.name = "fraction",
                              .type = OptionSpec::Type::kDouble,
                              .default_value = "0.005",
                              .min = 0,
                              .max = 0.5}};
  EXPECT_EQ(OptionDouble(*ResolveOptions("p", spec, {}), "fraction"), 0.005);
  EXPECT_EQ(ResolveOptions("p", spec, {{"fraction", "1e-1"}})->at("fraction"), "0.1");
  for (const char* bad : {"nan", "inf", "0.6", "-0.1", "0.1 "})
    EXPECT_FALSE(ResolveOptions("p", spec, {{"fraction", bad}}).ok()) << bad;
}

TEST(Catalog, NeedsDependOnOptionsAndObjective) {
  const QuantizerRow& lnq = **FindQuantizer("lnq");
  const OptionMap best = Resolve(lnq), published = Resolve(lnq, {{"solver", "published"}});
  EXPECT_THAT(lnq.needs(Objective::kGuided, best), ElementsAre(kFisherBlocks));
  EXPECT_THAT(lnq.needs(Objective::kPlain, best), ElementsAre(kGram));
  EXPECT_THAT(lnq.needs(Objective::kGuided, published),
              ElementsAre(kFisherBlocks, kFisherDiagonal));
  EXPECT_THAT(lnq.needs(Objective::kPlain, published), ElementsAre(kGram, kFisherDiagonal));
  EXPECT_THAT((*FindQuantizer("rtn"))->needs(Objective::kGuided, {}), IsEmpty());
  EXPECT_THAT((*FindQuantizer("squeezellm"))->needs(Objective::kGuided, {}),
              ElementsAre(kFisherDiagonal));
}

TEST(Catalog, UnknownNamesGetTheNearest) {
  EXPECT_THAT(FindQuantizer("squezellm").status().message(), HasSubstr("did you mean squeezellm?"));
  EXPECT_THAT(FindQuantizer("zzzzzzzz").status().message(),
              AllOf(HasSubstr("zzzzzzzz"), HasSubstr("Known: rtn, ")));
  EXPECT_THAT(FindOutlierPolicy("nonne").status().message(), HasSubstr("did you mean none?"));
  EXPECT_THAT(FindStatistic("fisher_block").status().message(),
              HasSubstr("did you mean fisher_blocks?"));
  EXPECT_THAT(ParseObjective("guidd").status().message(), HasSubstr("did you mean guided?"));
  EXPECT_EQ(*ParseObjective("plain"), Objective::kPlain);
  EXPECT_FALSE(FindQuantizer(std::string(1 << 20, 'a')).ok());
}

TEST(Catalog, RowsAreWellFormed) {
  std::set<std::string_view> names;
  for (const QuantizerRow& row : Quantizers()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_FALSE(row.summary.empty());
    EXPECT_GE(row.min_bits, 1);
    EXPECT_LE(row.max_bits, 8);
    const OptionMap defaults = Resolve(row);
    for (const OptionSpec& option : row.options) EXPECT_FALSE(option.help.empty()) << option.name;
    for (const Objective objective : {Objective::kGuided, Objective::kPlain}) {
      for (const std::string_view need : row.needs(objective, defaults))
        EXPECT_TRUE(FindStatistic(need).ok()) << need;
    }
  }
  for (const OutlierPolicyRow& row : OutlierPolicies()) {
    const OptionMap defaults = *ResolveOptions(row.name, row.options, {});
    for (const std::string_view need : row.needs(defaults))
      EXPECT_TRUE(FindStatistic(need).ok()) << need;
  }
  for (const StatisticRow& row : Statistics()) {
    EXPECT_GT(row.accumulating_bytes(8, 16, 2), 0) << row.name;
    EXPECT_LE(row.finished_bytes(8, 16, 2), row.accumulating_bytes(8, 16, 2)) << row.name;
  }
}

}  // namespace
}  // namespace gradq
