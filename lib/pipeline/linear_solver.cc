#include "lib/pipeline/linear_solver.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/statistics.h"
#include "lib/pipeline/tensors.h"
#include "lib/solvers/layer_problem.h"
#include "lib/solvers/outlier_policy.h"
#include "lib/solvers/quantizer.h"
#include "lib/solvers/requant.h"
#include "lib/statistics/statistic.h"

namespace gradq {
namespace {

using NamedTensors = std::map<std::string, at::Tensor>;

absl::StatusOr<NamedTensors> ReadStatistics(ChunkReader* reader) {
  NamedTensors tensors;
  while (reader != nullptr) {
    absl::StatusOr<Chunk> chunk = reader->Next();
    if (absl::IsOutOfRange(chunk.status())) break;
    GRADQ_RETURN_IF_ERROR(chunk.status());
    for (const HostTensor& tensor : chunk->tensors) {
      GRADQ_ASSIGN_OR_RETURN(tensors[tensor.name], ToTensor(tensor));
    }
  }
  return tensors;
}

absl::StatusOr<LinearShape> FindLinear(const ModelGeometry& geometry, const std::string& name) {
  for (LinearShape& shape : LinearsOf(geometry)) {
    if (shape.name == name) return std::move(shape);
  }
  return absl::NotFoundError(StrCat("model has no such linear: ", name));
}

absl::StatusOr<at::Tensor> ReadWeight(const WeightSource& weights, const LinearShape& shape) {
  GRADQ_ASSIGN_OR_RETURN(std::vector<float> values,
                         weights.tensors().ReadFloat32(StrCat(shape.name, ".weight")));
  auto owner = std::make_shared<std::vector<float>>(std::move(values));
  return at::from_blob(
      owner->data(), {shape.out_features, shape.in_features}, [owner](void*) {},
      at::TensorOptions().dtype(at::kFloat));
}

// What the method and the policy read, and the Fisher blocks wherever they came: they price the
// result.
absl::StatusOr<std::vector<std::string_view>> NeedsOf(const Recipe& recipe,
                                                      const NamedTensors& tensors) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(recipe.method));
  GRADQ_ASSIGN_OR_RETURN(const OutlierPolicyRow* policy, FindOutlierPolicy(recipe.outliers));
  std::vector<std::string_view> needs = row->needs(recipe.objective, recipe.options);
  const auto add = [&](std::string_view need) {
    if (std::find(needs.begin(), needs.end(), need) == needs.end()) needs.push_back(need);
  };
  for (const std::string_view need : policy->needs(recipe.outlier_options)) add(need);
  if (tensors.contains(StrCat(kFisherBlocks, "/0"))) add(kFisherBlocks);
  return needs;
}

// The problem without its width and shrinkage.
absl::StatusOr<LayerProblem> MakeProblem(const WeightSource& weights, const SolveRecipe& solve,
                                         const LinearShape& shape, const SolveDecision& decision,
                                         NamedTensors tensors) {
  const Recipe& recipe = solve.recipe;
  LayerProblem problem;
  problem.name = shape.name;
  GRADQ_ASSIGN_OR_RETURN(problem.weight, ReadWeight(weights, shape));
  problem.groups = {shape.out_features, recipe.groups};
  problem.objective = recipe.objective;
  problem.options = recipe.options;
  problem.outliers = recipe.outliers;
  problem.outlier_options = recipe.outlier_options;
  problem.decision = {.threshold = decision.threshold, .fraction = decision.outlier_fraction};
  problem.loss_price = LossPrice(solve.sequences, solve.length);
  GRADQ_ASSIGN_OR_RETURN(const std::vector<std::string_view> needs, NeedsOf(recipe, tensors));
  GRADQ_RETURN_IF_ERROR(AttachStatistics(tensors, needs, &problem));
  return problem;
}

absl::StatusOr<std::vector<Variant>> ChosenVariants(const Recipe& recipe,
                                                    const SolveDecision& decision) {
  std::vector<Variant> variants = VariantsOf(recipe);
  if (!decision.variant.has_value()) return variants;
  if (*decision.variant < 0 || *decision.variant >= static_cast<int>(variants.size())) {
    return absl::InvalidArgumentError(StrCat(
        "decided variant is none of the recipe's: ", *decision.variant, " of ", variants.size()));
  }
  return std::vector<Variant>{variants[static_cast<size_t>(*decision.variant)]};
}

SolvedLinear AsShard(QuantizedLinear linear) {
  SolvedLinear solved;
  solved.shard = SerializeShard(linear);
  solved.sha256 = Sha256Hex(solved.shard);
  solved.linear = std::move(linear);
  return solved;
}

std::span<const float> Values(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

// PQI's scores of a linear, and the original weights.
struct PathScores {
  at::Tensor weight;
  std::vector<float> scores;
};
absl::StatusOr<PathScores> ScorePath(const WeightSource& weights, const SolveRecipe& recipe,
                                     const QuantizedLinear& quantized,
                                     const NamedTensors& tensors) {
  GRADQ_ASSIGN_OR_RETURN(const LinearShape shape, FindLinear(weights.geometry(), quantized.name));
  LayerProblem problem;
  problem.name = shape.name;
  GRADQ_ASSIGN_OR_RETURN(problem.weight, ReadWeight(weights, shape));
  GRADQ_RETURN_IF_ERROR(AttachStatistics(tensors, {kWeightGradient}, &problem));
  if (quantized.weights() != problem.weight.numel()) {
    return absl::InvalidArgumentError(
        StrCat("shard of another shape than the linear: ", quantized.name));
  }
  return PathScores{problem.weight, PqiScores(Values(problem.weight), Dequantize(quantized),
                                              Values(problem.weight_gradient), recipe.sequences)};
}

absl::StatusOr<std::vector<float>> PolicyScores(const WeightSource& weights,
                                                const SolveRecipe& recipe,
                                                const std::string& linear, NamedTensors tensors,
                                                const SolveContext& context) {
  const auto bindings = OutlierPolicyBindings();
  const auto binding = std::find_if(bindings.begin(), bindings.end(), [&](const auto& candidate) {
    return candidate.name == recipe.recipe.outliers;
  });
  if (binding == bindings.end() || binding->score == nullptr) {
    return absl::InvalidArgumentError(
        StrCat("outlier policy ranks by no score: ", recipe.recipe.outliers));
  }
  GRADQ_ASSIGN_OR_RETURN(const LinearShape shape, FindLinear(weights.geometry(), linear));
  GRADQ_ASSIGN_OR_RETURN(LayerProblem problem,
                         MakeProblem(weights, recipe, shape, {}, std::move(tensors)));
  const Variant variant = VariantsOf(recipe.recipe).front();
  problem.bits = variant.bits;
  problem.shrinkage = variant.shrinkage;
  return binding->score(recipe.recipe.method, problem, recipe.recipe.outlier_options, context);
}

}  // namespace

double LossPrice(int64_t sequences, int64_t length) {
  return 0.5 * (static_cast<double>(length) / static_cast<double>(sequences)) /
         (kGradientScale * kGradientScale);
}

absl::StatusOr<std::vector<SolvedLinear>> SolveLinear(const WeightSource& weights,
                                                      const SolveRecipe& recipe,
                                                      const SolveDecision& decision,
                                                      const std::string& linear,
                                                      ChunkReader* statistics, ThreadPool* pool,
                                                      std::function<bool()> cancelled) {
  GRADQ_ASSIGN_OR_RETURN(const LinearShape shape, FindLinear(weights.geometry(), linear));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<Variant> variants,
                         ChosenVariants(recipe.recipe, decision));
  std::vector<SolvedLinear> solved;
  const SolveContext context{pool, std::move(cancelled)};
  GRADQ_RETURN_IF_ERROR(CatchTorch(StrCat("solve ", linear), [&]() -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(NamedTensors tensors, ReadStatistics(statistics));
    // Waiting for the statistics is over; from here on it is numeric work.
    const absl::Duration started = Clock::Real().Monotonic();
    GRADQ_ASSIGN_OR_RETURN(const LayerProblem problem,
                           MakeProblem(weights, recipe, shape, decision, std::move(tensors)));
    GRADQ_ASSIGN_OR_RETURN(std::vector<QuantizedLinear> linears,
                           SolveVariants(recipe.recipe.method, problem, variants, context));
    for (size_t i = 0; i < linears.size(); ++i) {
      solved.push_back(AsShard(std::move(linears[i])));
      solved.back().shrinkage = variants[i].shrinkage;
    }
    solved.front().compute_seconds = absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
    return absl::OkStatus();
  }));
  return solved;
}

absl::StatusOr<ScoredLinear> ScoreLinear(const WeightSource& weights, const SolveRecipe& recipe,
                                         const std::string& linear,
                                         const QuantizedLinear* quantized, ChunkReader* statistics,
                                         ThreadPool* pool, std::function<bool()> cancelled) {
  ScoredLinear scored;
  const SolveContext context{pool, std::move(cancelled)};
  GRADQ_RETURN_IF_ERROR(CatchTorch(StrCat("score ", linear), [&]() -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(NamedTensors tensors, ReadStatistics(statistics));
    const absl::Duration started = Clock::Real().Monotonic();
    if (quantized != nullptr) {
      GRADQ_ASSIGN_OR_RETURN(const PathScores path,
                             ScorePath(weights, recipe, *quantized, tensors));
      GRADQ_ASSIGN_OR_RETURN(scored.summary, SummarizeScores(path.scores, ApartMask(*quantized)));
    } else {
      GRADQ_ASSIGN_OR_RETURN(const std::vector<float> scores,
                             PolicyScores(weights, recipe, linear, std::move(tensors), context));
      GRADQ_ASSIGN_OR_RETURN(scored.summary, SummarizeScores(scores, {}));
    }
    scored.compute_seconds = absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
    return absl::OkStatus();
  }));
  return scored;
}

absl::StatusOr<SolvedLinear> DetachLinear(const WeightSource& weights, const SolveRecipe& recipe,
                                          const SolveDecision& decision,
                                          const QuantizedLinear& quantized,
                                          ChunkReader* statistics) {
  SolvedLinear solved;
  GRADQ_RETURN_IF_ERROR(CatchTorch(StrCat("detach ", quantized.name), [&]() -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(const NamedTensors tensors, ReadStatistics(statistics));
    const absl::Duration started = Clock::Real().Monotonic();
    GRADQ_ASSIGN_OR_RETURN(const PathScores path, ScorePath(weights, recipe, quantized, tensors));
    QuantizedLinear linear = quantized;
    GRADQ_RETURN_IF_ERROR(DetachOutliers(
        Values(path.weight), path.scores,
        decision.threshold.value_or(std::numeric_limits<double>::infinity()), &linear));
    solved = AsShard(std::move(linear));
    solved.compute_seconds = absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
    return absl::OkStatus();
  }));
  return solved;
}

}  // namespace gradq
