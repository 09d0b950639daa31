#include "lib/solvers/quantizer.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/statistics.h"
#include "lib/solvers/grid_snap.h"
#include "lib/solvers/outlier_policy.h"
#include "lib/solvers/quantizers/methods.h"

namespace gradq {
namespace {

constexpr QuantizerBinding kBindings[] = {
    {"rtn", SolveRtn},
    {"gptq", SolveGptq},
    {"gptvq1d", SolveGptvq1d},
    {"squeezellm", SolveSqueezellm},
    {"lnq", SolveLnq, SolveLnqShrinkages},
};

// OK when every value is finite.
absl::Status CheckFinite(const at::Tensor& tensor, std::string_view linear, std::string_view what) {
  const float* values = tensor.const_data_ptr<float>();
  // A sum of zeros, unless some value is not finite; without branches.
  float sum = 0.0f;
  for (int64_t i = 0; i < tensor.numel(); ++i) sum += values[i] * 0.0f;
  if (sum == 0.0f) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat(linear, ": ", what, " holds a value that is not finite"));
}

absl::Status CheckTensor(const at::Tensor& tensor, int64_t rows, int64_t columns,
                         std::string_view linear, std::string_view what) {
  if (!tensor.defined() || tensor.scalar_type() != at::kFloat || !tensor.is_contiguous() ||
      tensor.dim() != 2 || tensor.size(0) != rows || tensor.size(1) != columns) {
    return absl::InvalidArgumentError(
        StrCat(linear, ": ", what, " missing or not contiguous fp32 [", rows, ", ", columns, "]"));
  }
  return CheckFinite(tensor, linear, what);
}

absl::Status CheckStatistic(std::string_view need, const LayerProblem& problem) {
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  if (need == kFisherBlocks &&
      static_cast<int>(problem.fisher_blocks.size()) != problem.groups.groups) {
    return absl::InvalidArgumentError(
        StrCat(problem.name, ": fisher_blocks missing: ", problem.fisher_blocks.size(), " of ",
               problem.groups.groups));
  }
  if (need == kGram) return CheckTensor(problem.gram, columns, columns, problem.name, need);
  if (need == kFisherDiagonal)
    return CheckTensor(problem.fisher_diagonal, rows, columns, problem.name, need);
  if (need == kWeightGradient)
    return CheckTensor(problem.weight_gradient, rows, columns, problem.name, need);
  if (need == kOutputFisher)
    return CheckTensor(problem.output_fisher, rows, rows, problem.name, need);
  return absl::OkStatus();
}

absl::Status CheckProblem(const QuantizerRow& row, const LayerProblem& problem) {
  if (!problem.weight.defined() || problem.weight.dim() != 2 || problem.weight.numel() == 0) {
    return absl::InvalidArgumentError(StrCat(problem.name, ": weight missing"));
  }
  const int64_t rows = problem.weight.size(0), columns = problem.weight.size(1);
  GRADQ_RETURN_IF_ERROR(CheckTensor(problem.weight, rows, columns, problem.name, "weight"));
  if (problem.bits < row.min_bits || problem.bits > row.max_bits) {
    return absl::InvalidArgumentError(StrCat(problem.name, ": bits outside ", row.min_bits, "..",
                                             row.max_bits, ": ", problem.bits));
  }
  if (problem.groups.rows != rows || problem.groups.groups < 1 || problem.groups.groups > rows) {
    return absl::InvalidArgumentError(
        StrCat(problem.name, ": groups don't fit ", rows, " rows: ", problem.groups.groups));
  }
  for (const std::string_view need : row.needs(problem.objective, problem.options)) {
    GRADQ_RETURN_IF_ERROR(CheckStatistic(need, problem));
  }
  for (const at::Tensor& block : problem.fisher_blocks) {
    GRADQ_RETURN_IF_ERROR(CheckTensor(block, columns, columns, problem.name, kFisherBlocks));
  }
  if (!problem.apart.empty() && static_cast<int64_t>(problem.apart.size()) != rows * columns) {
    return absl::InvalidArgumentError(
        StrCat(problem.name, ": mask of outliers has the wrong size: ", problem.apart.size(),
               ", expected ", rows * columns));
  }
  return absl::OkStatus();
}

// Lets the policy set problem->apart. Its numbers go to `record`.
absl::Status ChooseOutliers(std::string_view method, const SolveContext& context,
                            LayerProblem* problem, SolveRecord* record) {
  GRADQ_ASSIGN_OR_RETURN(const OutlierPolicyRow* row, FindOutlierPolicy(problem->outliers));
  if (row->name == "none") return absl::OkStatus();
  GRADQ_ASSIGN_OR_RETURN(problem->outlier_options,
                         ResolveOptions(row->name, row->options, problem->outlier_options));
  for (const std::string_view need : row->needs(problem->outlier_options)) {
    GRADQ_RETURN_IF_ERROR(CheckStatistic(need, *problem));
  }
  const auto bindings = OutlierPolicyBindings();
  const auto binding = std::find_if(bindings.begin(), bindings.end(),
                                    [&](const auto& entry) { return entry.name == row->name; });
  GRADQ_CHECK(binding != bindings.end());
  GRADQ_ASSIGN_OR_RETURN(problem->apart, binding->choose(method, *problem, problem->outlier_options,
                                                         problem->decision, context, record));
  record->numbers["outliers"] =
      static_cast<double>(std::count(problem->apart.begin(), problem->apart.end(), uint8_t{1}));
  return absl::OkStatus();
}

// Objective where the method left it open, and the predicted loss increase.
void CompleteRecord(const LayerProblem& problem, ThreadPool* pool, QuantizedLinear* linear) {
  const bool guided = !problem.fisher_blocks.empty();
  const bool plain = problem.objective == Objective::kPlain && problem.gram.defined();
  // Where weights are kept apart the method has not seen their rounding to fp16.
  const bool open = !linear->record.objective_final.has_value() || !linear->outliers.empty();
  if (!guided && !(plain && open)) return;
  std::vector<float> weights = Dequantize(*linear);
  const at::Tensor quantized = at::from_blob(
      weights.data(), {linear->out_features, linear->in_features}, at::TensorOptions(at::kFloat));
  if (plain && open) {
    linear->record.objective_final =
        LayerObjective(problem, std::span(&problem.gram, 1), quantized, pool);
  }
  if (!guided) return;
  std::vector<double> per_group;
  const double objective =
      LayerObjective(problem, problem.fisher_blocks, quantized, pool, &per_group);
  if (problem.objective != Objective::kPlain) linear->record.objective_final = objective;
  double increase = 0.0;
  for (int k = 0; k < problem.groups.groups; ++k) {
    increase += static_cast<double>(problem.groups.size(k)) * per_group[k];
  }
  linear->record.predicted_loss_increase = problem.loss_price * increase;
}

// A problem that has been checked and whose outliers are chosen.
struct Ready {
  const QuantizerBinding* binding = nullptr;
  LayerProblem problem;
  SolveRecord chosen;
};

absl::StatusOr<Ready> Prepare(std::string_view method, const LayerProblem& problem,
                              const SolveContext& context) {
  GRADQ_CHECK(context.pool != nullptr);
  GRADQ_ASSIGN_OR_RETURN(const QuantizerRow* row, FindQuantizer(method));
  Ready ready;
  ready.problem = problem;
  GRADQ_ASSIGN_OR_RETURN(ready.problem.options,
                         ResolveOptions(row->name, row->options, problem.options));
  GRADQ_RETURN_IF_ERROR(CheckProblem(*row, ready.problem));
  ready.binding = std::find_if(std::begin(kBindings), std::end(kBindings),
                               [&](const auto& entry) { return entry.name == row->name; });
  GRADQ_CHECK(ready.binding != std::end(kBindings));
  GRADQ_RETURN_IF_ERROR(ChooseOutliers(row->name, context, &ready.problem, &ready.chosen));
  return ready;
}

// What all methods have in common, to the result of one.
absl::StatusOr<QuantizedLinear> Complete(const Ready& ready, QuantizedLinear linear,
                                         const SolveContext& context) {
  const LayerProblem& problem = ready.problem;
  linear.name = problem.name;
  linear.bits = problem.bits;
  linear.out_features = problem.weight.size(0);
  linear.in_features = problem.weight.size(1);
  linear.record.method = std::string(ready.binding->name);
  linear.record.numbers.insert(ready.chosen.numbers.begin(), ready.chosen.numbers.end());
  if (const auto grid = problem.options.find("grid_bits");
      grid != problem.options.end() && grid->second != "0") {
    GRADQ_ASSIGN_OR_RETURN(
        linear, SnapToGrid(problem, linear, OptionInt(problem.options, "grid_bits"), context));
  }
  if (!problem.apart.empty()) {
    GRADQ_RETURN_IF_ERROR(SetOutliers(
        {problem.weight.const_data_ptr<float>(), problem.apart.size()}, problem.apart, &linear));
  }
  GRADQ_RETURN_IF_ERROR(Validate(linear));
  CompleteRecord(problem, context.pool, &linear);
  return linear;
}

}  // namespace

std::span<const QuantizerBinding> QuantizerBindings() { return kBindings; }

absl::StatusOr<QuantizedLinear> SolveLayer(std::string_view method, const LayerProblem& problem,
                                           const SolveContext& context) {
  GRADQ_ASSIGN_OR_RETURN(const Ready ready, Prepare(method, problem, context));
  GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear, ready.binding->solve(ready.problem, context));
  return Complete(ready, std::move(linear), context);
}

absl::StatusOr<std::vector<QuantizedLinear>> SolveVariants(std::string_view method,
                                                           const LayerProblem& problem,
                                                           std::span<const Variant> variants,
                                                           const SolveContext& context) {
  std::vector<QuantizedLinear> results(variants.size());
  std::vector<bool> solved(variants.size());
  for (size_t first = 0; first < variants.size(); ++first) {
    if (solved[first]) continue;
    // All variants of one width together.
    std::vector<size_t> places;
    std::vector<double> shrinkages;
    for (size_t i = first; i < variants.size(); ++i) {
      if (variants[i].bits != variants[first].bits) continue;
      places.push_back(i);
      shrinkages.push_back(variants[i].shrinkage);
      solved[i] = true;
    }
    LayerProblem varied = problem;
    varied.bits = variants[first].bits;
    GRADQ_ASSIGN_OR_RETURN(const Ready ready, Prepare(method, varied, context));
    std::vector<QuantizedLinear> linears;
    if (problem.objective == Objective::kCoupled && ready.binding->solve_shrinkages != nullptr) {
      GRADQ_ASSIGN_OR_RETURN(linears,
                             ready.binding->solve_shrinkages(ready.problem, shrinkages, context));
    } else {
      GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear, ready.binding->solve(ready.problem, context));
      linears.assign(places.size(), linear);
    }
    for (size_t i = 0; i < places.size(); ++i) {
      GRADQ_ASSIGN_OR_RETURN(results[places[i]], Complete(ready, std::move(linears[i]), context));
    }
  }
  return results;
}

}  // namespace gradq
