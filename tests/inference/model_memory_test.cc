// What a model takes: predicted from recipe and geometry, from the headers of its files, and
// counted when it is there; loading where that does not fit, and where the device is none.

#include "lib/inference/model_memory.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/catalog/inference_memory.h"
#include "lib/catalog/plan.h"
#include "lib/inference/compute_device.h"
#include "lib/kernels/tile_matrix.h"
#include "tests/inference/quantized_folder.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kTiny = StrCat(GRADQ_FIXTURES, "/tiny-llama");
const std::string kDocs = StrCat(GRADQ_FIXTURES, "/docs-llama-6m");
const std::string kQwen2 = StrCat(GRADQ_GOLDEN, "/transformer/qwen2");

struct Case {
  std::string model;
  PlainQuantization quantization;
  std::string method;  // that makes such linears
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string& model : {kTiny, kDocs, kQwen2}) {
    for (const int bits : {2, 3, 4}) {
      cases.push_back({model, {.encoding = Encoding::kLut, .bits = bits}, "lnq"});
      cases.push_back(
          {model, {.encoding = Encoding::kAffine, .bits = bits, .group_size = 32}, "rtn"});
    }
    cases.push_back(
        {model, {.encoding = Encoding::kLut, .bits = 3, .outliers = true}, "squeezellm"});
    // No tile kernels.
    cases.push_back({model, {.encoding = Encoding::kLut, .bits = 5, .outliers = true}, "lnq"});
  }
  return cases;
}

// The recipe whose artifact has linears like those of `quantization`.
Recipe RecipeOf(const Case& one) {
  Recipe recipe;
  recipe.method = one.method;
  recipe.bits = one.quantization.bits;
  if (one.method == "rtn") recipe.options["group_size"] = "32";
  if (one.quantization.outliers) {
    recipe.outliers = "squeezellm";
    recipe.outlier_options["fraction"] = "0.005";
  }
  return recipe;
}

TEST(ModelMemoryTest, PredictionHeadersAndCountAgree) {
  at::set_num_threads(1);
  for (const Case& one : Cases()) {
    const TestFolder folder;
    const std::string path = folder.path() + "/artifact";
    WriteQuantizedFolder(one.model, one.quantization, path);
    const auto artifact = Artifact::Open(OpenFolderOrDie(path));
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    const absl::StatusOr<Recipe> recipe = ResolveRecipe(RecipeOf(one));
    ASSERT_TRUE(recipe.ok()) << recipe.status();
    for (const InferenceTarget target : {InferenceTarget::kCpu, InferenceTarget::kCuda}) {
      // The tile form is the same on the CPU.
      const bool tile = target == InferenceTarget::kCuda;
      const auto type = tile ? ComputeType::kFloat16 : ComputeType::kFloat32;
      const auto model = Model::Load(*OpenFolderOrDie(path), {.compute_type = type});
      ASSERT_TRUE(model.ok()) << model.status();
      const ModelMemory counted = (*model)->memory();
      const c10::ScalarType scalar = ScalarTypeOf(type, c10::Device(c10::kCPU));
      const ModelMemory headers =
          MemoryOfArtifact(**artifact, FormOf(c10::Device(c10::kCPU), scalar), scalar);
      const InferenceMemory predicted = PredictInference((*artifact)->geometry(), *recipe, target);
      const std::string name =
          StrCat(one.model, ", ", one.method, " at ", one.quantization.bits, " bits, ",
                 one.quantization.outliers ? "outliers, " : "", tile ? "tile" : "host");
      const auto linears = static_cast<double>(counted.linears);
      // Each is readable beyond its end.
      const double pads = 64.0 * static_cast<double>((*artifact)->linears().size());
      const double outliers = tile && one.quantization.outliers ? 0.04 * linears : 0;
      EXPECT_NEAR(static_cast<double>(headers.linears), linears, pads + outliers) << name;
      EXPECT_NEAR(predicted.linears, linears, pads + outliers) << name;
      EXPECT_EQ(headers.kept, counted.kept) << name;
      EXPECT_EQ(predicted.kept, static_cast<double>(counted.kept)) << name;
      EXPECT_EQ(headers.cache_per_token, counted.cache_per_token) << name;
      EXPECT_EQ(predicted.cache_per_token, static_cast<double>(counted.cache_per_token)) << name;
      EXPECT_EQ(headers.scratch, counted.scratch) << name;
      // Without tile kernels other panels are decoded.
      EXPECT_NEAR(predicted.scratch / static_cast<double>(counted.scratch), 1, 0.2) << name;
    }
  }
}

TEST(ModelMemoryTest, DenseModels) {
  for (const std::string& path : {kTiny, kQwen2}) {
    const auto model = Model::Load(*OpenFolderOrDie(path), {});
    ASSERT_TRUE(model.ok()) << model.status();
    const ModelMemory counted = (*model)->memory();
    const ModelMemory headers = MemoryOfDense((*model)->geometry(), c10::kFloat);
    EXPECT_EQ(headers.linears, counted.linears);
    EXPECT_EQ(headers.kept, counted.kept);
    EXPECT_EQ(headers.scratch, counted.scratch);
  }
}

// The catalog says what tile matrices take without knowing the kernels.
TEST(ModelMemoryTest, CatalogKnowsTheTileLayout) {
  ModelGeometry geometry;
  const FamilyRow* llama = &Families().front();
  for (const int64_t hidden : {64, 200, 4096}) {
    geometry = {};
    geometry.family = llama;
    geometry.hidden_size = hidden;
    geometry.intermediate_size = 3 * hidden + 8;
    geometry.blocks = 1;
    geometry.heads = geometry.kv_heads = 4;
    geometry.head_dim = hidden / 4;
    geometry.vocab_size = 100;
    geometry.max_positions = 100;
    for (const int bits : {2, 3, 4}) {
      for (const bool lut : {true, false}) {
        Recipe recipe;
        recipe.method = lut ? "lnq" : "rtn";
        recipe.bits = bits;
        recipe.outliers = "squeezellm";
        recipe.outlier_options["fraction"] = "0.0045";
        const absl::StatusOr<Recipe> resolved = ResolveRecipe(recipe);
        ASSERT_TRUE(resolved.ok()) << resolved.status();
        const auto encoding = lut ? kernels::TileEncoding::kLut : kernels::TileEncoding::kAffine;
        const auto bytes = [&](int64_t out, int64_t in, std::vector<int64_t> parts) {
          int64_t outliers = 0;
          for (const int64_t part : parts)
            outliers += std::llround(0.0045 * static_cast<double>(part * in));
          return kernels::TileMatrixBytes(encoding, bits, out, in, lut ? 0 : 128, outliers);
        };
        const int64_t inner = geometry.intermediate_size;
        const int64_t expected =
            bytes(3 * hidden, hidden, {hidden, hidden, hidden}) + bytes(hidden, hidden, {hidden}) +
            bytes(2 * inner, hidden, {inner, inner}) + bytes(hidden, inner, {hidden});
        EXPECT_EQ(PredictInference(geometry, *resolved, InferenceTarget::kCuda).linears,
                  static_cast<double>(expected))
            << hidden << ", " << bits << " bits, lut " << lut;
      }
    }
  }
}

TEST(ModelMemoryTest, MixedWidthsLieBetween) {
  const auto model = Model::Load(*OpenFolderOrDie(kDocs), {});
  ASSERT_TRUE(model.ok());
  const auto linears = [&](std::optional<double> average, int bits) {
    Recipe recipe;
    recipe.bits = bits;
    recipe.average_bits = average;
    return PredictInference((*model)->geometry(), *ResolveRecipe(recipe), InferenceTarget::kCuda)
        .linears;
  };
  Recipe two;
  two.bits = 2;
  const double least = AverageBits((*model)->geometry(), *ResolveRecipe(two), 2);
  EXPECT_NEAR(linears(least, 3), linears({}, 2), 1);
  EXPECT_GT(linears(least + 0.5, 3), linears({}, 2));
  EXPECT_LT(linears(least + 0.5, 3), linears({}, 3));
  EXPECT_GT(linears(least + 1.5, 3), linears({}, 3));
  EXPECT_LT(linears(least + 1.5, 3), linears({}, 4));
}

TEST(ModelMemoryTest, WhatDoesNotFitIsRefusedAndTheNextLoads) {
  int64_t free = 1000;
  int asked = 0;
  const LoadOptions options = {.free_bytes = [&]() -> absl::StatusOr<int64_t> {
    ++asked;
    return free;
  }};
  const auto refused = Model::Load(*OpenFolderOrDie(kTiny), options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
  const auto loaded = Model::Load(*OpenFolderOrDie(kTiny), {});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const ModelMemory memory = (*loaded)->memory();
  const int64_t needed = memory.weights() + memory.scratch;
  EXPECT_THAT(std::string(refused.status().message()),
              AllOf(HasSubstr(StrCat("needed ", needed, " bytes")), HasSubstr("free 1000 bytes"),
                    HasSubstr("cpu"), HasSubstr(kTiny)));
  free = needed - 1;
  EXPECT_FALSE(Model::Load(*OpenFolderOrDie(kTiny), options).ok());
  free = needed;
  const auto fits = Model::Load(*OpenFolderOrDie(kTiny), options);
  EXPECT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(asked, 3);
  const LoadOptions broken = {
      .free_bytes = []() -> absl::StatusOr<int64_t> { return absl::UnavailableError("driver"); }};
  EXPECT_EQ(Model::Load(*OpenFolderOrDie(kTiny), broken).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(ComputeDeviceTest, Capability) {
  kernels::CudaDevice device;
  device.name = "Old";
  device.compute_major = 7;
  device.compute_minor = 5;
  const absl::Status status = CheckCapability("cuda:1", device);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("8.0"), HasSubstr("7.5"), HasSubstr("cuda:1"), HasSubstr("Old")));
  device.compute_major = 8;
  device.compute_minor = 0;
  EXPECT_TRUE(CheckCapability("cuda:1", device).ok());
}

TEST(ComputeDeviceTest, ComputeTypes) {
  EXPECT_EQ(*ParseComputeType("", "cpu"), ComputeType::kDefault);
  EXPECT_EQ(*ParseComputeType("float32", "cpu"), ComputeType::kFloat32);
  EXPECT_EQ(*ParseComputeType("float16", "cuda:0"), ComputeType::kFloat16);
  EXPECT_EQ(*ParseComputeType("bfloat16", "cuda:3"), ComputeType::kBFloat16);
  for (const auto& [word, device] : {std::pair{"float16", "cpu"},
                                     {"bfloat16", "cpu"},
                                     {"float32", "cuda:0"},
                                     {"half", "cuda:0"},
                                     {"float16", "gpu"}}) {
    const auto refused = ParseComputeType(word, device);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(device));
  }
  EXPECT_EQ(ScalarTypeOf(ComputeType::kDefault, c10::Device(c10::kCPU)), c10::kFloat);
  EXPECT_EQ(ScalarTypeOf(ComputeType::kDefault, c10::Device(c10::kCUDA, 0)), c10::kBFloat16);
}

}  // namespace
}  // namespace gradq
