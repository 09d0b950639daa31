// What the plan says of stored bits against linears as they are stored.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "lib/catalog/plan.h"
#include "lib/format/packing.h"
#include "lib/format/quantized_linear.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelGeometry Geometry(const std::string& name) {
  return *ParseGeometry(*ReadFile(StrCat(GRADQ_FIXTURES, "/", name, "/config.json")));
}

// A linear of zeros with all the parts that the recipe stores.
QuantizedLinear Stored(const LinearShape& shape, const Recipe& recipe, int bits) {
  QuantizedLinear linear;
  linear.name = shape.name;
  linear.encoding = (*FindQuantizer(recipe.method))->encoding;
  int64_t group_size = recipe.method == "rtn" ? OptionInt(recipe.options, "group_size") : 0;
  if (recipe.options.contains("grid_bits") && OptionInt(recipe.options, "grid_bits") > 0) {
    linear.encoding = Encoding::kAffine;
    bits = OptionInt(recipe.options, "grid_bits");
    group_size = shape.in_features;
  }
  linear.bits = bits;
  linear.out_features = shape.out_features;
  linear.in_features = shape.in_features;
  linear.packed.resize(shape.out_features * PackedWords(shape.in_features, bits));
  if (linear.encoding == Encoding::kLut) {
    linear.lut.resize(shape.out_features << bits);
  } else {
    linear.group_size = group_size;
    const int64_t groups = (shape.in_features + linear.group_size - 1) / linear.group_size;
    linear.scale.resize(shape.out_features * groups);
    linear.zero_point.resize(shape.out_features * groups);
  }
  if (!recipe.outlier_options.contains("fraction")) return linear;
  const double fraction = OptionDouble(recipe.outlier_options, "fraction");
  const auto count = static_cast<int64_t>(fraction * static_cast<double>(linear.weights()) + 0.5);
  std::vector<uint8_t> apart(linear.weights(), 0);
  for (int64_t i = 0; i < count; ++i) apart[i] = 1;
  const std::vector<float> weights(linear.weights(), 0.0F);
  EXPECT_TRUE(SetOutliers(weights, apart, &linear).ok());
  return linear;
}

TEST(AverageBits, AreThoseOfTheStoredLinears) {
  for (const char* model : {"docs-llama-6m", "tiny-llama"}) {
    for (const char* method : {"lnq", "lnq on a grid", "rtn"}) {
      for (const char* outliers : {"none", "squeezellm"}) {
        for (const int bits : {2, 3, 4}) {
          SCOPED_TRACE(StrCat(model, " ", method, " ", outliers, " ", bits));
          Recipe recipe;
          const bool on_grid = std::string_view(method) == "lnq on a grid";
          recipe.method = on_grid ? "lnq" : method;
          if (on_grid) recipe.options["grid_bits"] = "8";
          recipe.bits = bits;
          recipe.outliers = outliers;
          recipe = *ResolveRecipe(recipe);
          const ModelGeometry geometry = Geometry(model);
          double stored = 0, weights = 0;
          for (const LinearShape& shape : LinearsOf(geometry)) {
            const QuantizedLinear linear = Stored(shape, recipe, bits);
            stored += linear.average_bits() * static_cast<double>(linear.weights());
            weights += static_cast<double>(linear.weights());
          }
          EXPECT_NEAR(AverageBits(geometry, recipe, bits), stored / weights, 1e-12);
        }
      }
    }
  }
}

TEST(AverageBits, OutOfReachNamesWhatIsReachable) {
  PlanInputs inputs;
  inputs.geometry = Geometry("docs-llama-6m");
  inputs.recipe.average_bits = 2.0;
  const std::string low(MakePlan(inputs).status().message());
  EXPECT_THAT(low, AllOf(HasSubstr("average bits out of reach"), HasSubstr(": 2")));
  // What the message names is accepted.
  const size_t at = low.find("reaches ") + 8;
  inputs.recipe.average_bits = std::stod(low.substr(at));
  EXPECT_TRUE(MakePlan(inputs).ok()) << low;
  inputs.recipe.average_bits = std::stod(low.substr(low.find(" to ", at) + 4));
  EXPECT_TRUE(MakePlan(inputs).ok()) << low;
  inputs.recipe.average_bits = *inputs.recipe.average_bits + 0.02;
  EXPECT_EQ(MakePlan(inputs).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gradq
