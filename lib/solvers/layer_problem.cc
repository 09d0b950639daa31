#include "lib/solvers/layer_problem.h"

#include <ATen/ops/empty_ops.h>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/statistics.h"

namespace gradq {
namespace {

// A packed lower triangle, row by row, as the full symmetric matrix.
at::Tensor Unfold(const at::Tensor& triangle, int64_t columns) {
  at::Tensor matrix =
      at::_ops::empty_memory_format::call({columns, columns}, at::kFloat, std::nullopt,
                                          at::Device(at::kCPU), std::nullopt, std::nullopt);
  const float* packed = triangle.const_data_ptr<float>();
  float* full = matrix.mutable_data_ptr<float>();
  // Square blocks: the mirrored writes go down columns.
  constexpr int64_t kBlock = 32;
  for (int64_t block = 0; block < columns; block += kBlock) {
    for (int64_t from = 0; from <= block; from += kBlock) {
      for (int64_t i = block; i < std::min(block + kBlock, columns); ++i) {
        const float* row = packed + i * (i + 1) / 2;
        for (int64_t j = from; j < std::min(from + kBlock, i + 1); ++j) {
          full[i * columns + j] = row[j];
          full[j * columns + i] = row[j];
        }
      }
    }
  }
  return matrix;
}

absl::StatusOr<at::Tensor> Take(const std::map<std::string, at::Tensor>& tensors,
                                const std::string& name, std::vector<int64_t> shape,
                                std::string_view linear) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    return absl::InvalidArgumentError(StrCat(linear, ": statistic missing: ", name));
  }
  const at::Tensor& tensor = found->second;
  if (!tensor.defined() || tensor.scalar_type() != at::kFloat || !tensor.device().is_cpu()) {
    return absl::InvalidArgumentError(StrCat(linear, ": statistic not fp32 on the CPU: ", name));
  }
  if (!tensor.sizes().equals(shape)) {
    return absl::InvalidArgumentError(
        StrCat(linear, ": statistic has the wrong size: ", name, ", ", tensor.numel(), " values"));
  }
  return tensor.contiguous();
}

}  // namespace

absl::Status AttachStatistics(const std::map<std::string, at::Tensor>& tensors,
                              const std::vector<std::string_view>& needs, LayerProblem* problem) {
  const int64_t rows = problem->weight.size(0), columns = problem->weight.size(1);
  const int64_t triangle = columns * (columns + 1) / 2;
  for (const std::string_view need : needs) {
    if (need == kFisherBlocks) {
      problem->fisher_blocks.clear();
      for (int k = 0; k < problem->groups.groups; ++k) {
        GRADQ_ASSIGN_OR_RETURN(const at::Tensor packed, Take(tensors, StrCat(kFisherBlocks, "/", k),
                                                             {triangle}, problem->name));
        problem->fisher_blocks.push_back(Unfold(packed, columns));
      }
    } else if (need == kGram) {
      GRADQ_ASSIGN_OR_RETURN(const at::Tensor packed,
                             Take(tensors, std::string(kGram), {triangle}, problem->name));
      problem->gram = Unfold(packed, columns);
    } else if (need == kOutputFisher) {
      GRADQ_ASSIGN_OR_RETURN(
          const at::Tensor packed,
          Take(tensors, std::string(kOutputFisher), {rows * (rows + 1) / 2}, problem->name));
      problem->output_fisher = Unfold(packed, rows);
    } else if (need == kWeightGradient) {
      GRADQ_ASSIGN_OR_RETURN(problem->weight_gradient, Take(tensors, std::string(kWeightGradient),
                                                            {rows, columns}, problem->name));
    } else if (need == kFisherDiagonal) {
      GRADQ_ASSIGN_OR_RETURN(problem->fisher_diagonal, Take(tensors, std::string(kFisherDiagonal),
                                                            {rows, columns}, problem->name));
    } else if (need == kWeightGradient) {
      GRADQ_ASSIGN_OR_RETURN(problem->weight_gradient, Take(tensors, std::string(kWeightGradient),
                                                            {rows, columns}, problem->name));
    } else {
      return absl::InvalidArgumentError(StrCat(problem->name, ": unknown statistic: ", need));
    }
  }
  return absl::OkStatus();
}

}  // namespace gradq
