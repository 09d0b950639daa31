#include "lib/solvers/coupled_model.h"

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

double Trace(const float* matrix, int64_t order) {
  double trace = 0.0;
  for (int64_t i = 0; i < order; ++i) trace += matrix[i * order + i];
  return trace;
}

// The Fisher blocks at the trace of their mean over the rows, and that mean.
void ShareInputs(const LayerProblem& problem, CoupledModel* model) {
  const int64_t columns = model->columns, size = columns * columns;
  const int groups = problem.groups.groups;
  double mean = 0.0;
  for (int k = 0; k < groups; ++k) {
    mean += Trace(problem.fisher_blocks[k].const_data_ptr<float>(), columns) *
            static_cast<double>(problem.groups.size(k)) / static_cast<double>(model->rows);
  }
  model->shared.assign(size, 0.0f);
  for (int k = 0; k < groups; ++k) {
    const float* block = problem.fisher_blocks[k].const_data_ptr<float>();
    const double trace = Trace(block, columns);
    const float scale = groups == 1 || trace <= 0.0 ? 1.0f : static_cast<float>(mean / trace);
    const float share =
        groups == 1 ? 1.0f
                    : static_cast<float>(problem.groups.size(k)) / static_cast<float>(model->rows);
    for (int64_t i = 0; i < size; ++i) model->shared[i] += share * (scale * block[i]);
    if (groups == 1) continue;
    model->own.emplace_back(size);
    for (int64_t i = 0; i < size; ++i) model->own[k][i] = scale * block[i];
  }
  for (std::vector<float>& own : model->own) {
    for (int64_t i = 0; i < size; ++i) own[i] -= model->shared[i];
  }
}

}  // namespace

absl::StatusOr<CoupledModel> PrepareCoupledModel(const LayerProblem& problem,
                                                 const LnqSettings& settings,
                                                 std::shared_ptr<const LnqGroup> single,
                                                 ThreadPool* pool) {
  CoupledModel model;
  model.rows = problem.weight.size(0);
  model.columns = problem.weight.size(1);
  model.groups = problem.groups;
  const float* output = problem.output_fisher.const_data_ptr<float>();
  const double trace = Trace(output, model.rows);
  const float scale =
      trace > 0.0 ? static_cast<float>(static_cast<double>(model.rows) / trace) : 0.0f;
  model.output.resize(model.rows * model.rows);
  for (size_t i = 0; i < model.output.size(); ++i) model.output[i] = scale * output[i];
  ShareInputs(problem, &model);
  if (single == nullptr) {
    GRADQ_ASSIGN_OR_RETURN(LnqGroup group,
                           PrepareLnqGroup(model.shared.data(), model.columns, settings, pool));
    single = std::make_shared<const LnqGroup>(std::move(group));
  }
  model.feedback = std::move(single);
  return model;
}

}  // namespace gradq
