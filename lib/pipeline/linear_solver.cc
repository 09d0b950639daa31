#include "lib/pipeline/linear_solver.h"

#include <ATen/ops/from_blob.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/pipeline/tensors.h"
#include "lib/solvers/layer_problem.h"
#include "lib/solvers/quantizer.h"
#include "lib/statistics/statistic.h"

namespace gradq {
namespace {

absl::StatusOr<std::map<std::string, at::Tensor>> ReadStatistics(ChunkReader* reader) {
  std::map<std::string, at::Tensor> tensors;
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

}  // namespace

double LossPrice(int64_t sequences, int64_t length) {
  return 0.5 * (static_cast<double>(length) / static_cast<double>(sequences)) /
         (kGradientScale * kGradientScale);
}

absl::StatusOr<SolvedLinear> SolveLinear(const WeightSource& weights, const SolveRecipe& recipe,
                                         const std::string& linear, ChunkReader* statistics,
                                         ThreadPool* pool, std::function<bool()> cancelled) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(recipe.method));
  GRADQ_ASSIGN_OR_RETURN(const LinearShape shape, FindLinear(weights.geometry(), linear));
  std::map<std::string, at::Tensor> tensors;
  SolvedLinear solved;
  const SolveContext context{pool, std::move(cancelled)};
  GRADQ_RETURN_IF_ERROR(CatchTorch(StrCat("solve ", linear), [&]() -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(tensors, ReadStatistics(statistics));
    // Waiting for the statistics is over; from here on it is numeric work.
    const absl::Duration started = Clock::Real().Monotonic();
    LayerProblem problem;
    problem.name = linear;
    GRADQ_ASSIGN_OR_RETURN(problem.weight, ReadWeight(weights, shape));
    problem.groups = {shape.out_features, recipe.groups};
    problem.bits = recipe.bits;
    problem.objective = recipe.objective;
    GRADQ_ASSIGN_OR_RETURN(problem.options,
                           ResolveOptions(row->name, row->options, recipe.options));
    problem.loss_price = LossPrice(recipe.sequences, recipe.length);
    const std::vector<std::string_view> needs = row->needs(problem.objective, problem.options);
    GRADQ_RETURN_IF_ERROR(AttachStatistics(tensors, needs, &problem));
    tensors.clear();
    GRADQ_ASSIGN_OR_RETURN(solved.linear, SolveLayer(recipe.method, problem, context));
    solved.shard = SerializeShard(solved.linear);
    solved.sha256 = Sha256Hex(solved.shard);
    solved.compute_seconds = absl::ToDoubleSeconds(Clock::Real().Monotonic() - started);
    return absl::OkStatus();
  }));
  return solved;
}

}  // namespace gradq
