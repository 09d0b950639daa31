#include <algorithm>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/kernels/coordinate_descent.h"
#include "lib/solvers/quantizer.h"

namespace gradq {

double LayerObjective(const LayerProblem& problem, std::span<const at::Tensor> matrices,
                      const at::Tensor& quantized, ThreadPool* pool,
                      std::vector<double>* per_group) {
  using kernels::kTileRows;
  const GroupPartition& groups = problem.groups;
  const int64_t columns = problem.weight.size(1);
  GRADQ_CHECK(matrices.size() == 1 || static_cast<int>(matrices.size()) == groups.groups);
  const float* weight = problem.weight.const_data_ptr<float>();
  const float* result = quantized.const_data_ptr<float>();
  std::vector<double> forms(groups.rows);
  std::vector<kernels::AlignedFloats> errors(pool->threads());
  for (kernels::AlignedFloats& error : errors) error = kernels::AlignedFloats(columns * kTileRows);
  kernels::PanelMatrix panels;
  for (int k = 0; k < groups.groups; ++k) {
    if (k == 0 || matrices.size() > 1) {
      panels = kernels::PanelMatrix(matrices[k].const_data_ptr<float>(), columns);
    }
    const int64_t first = groups.begin(k), end = groups.begin(k + 1);
    pool->ParallelFor((end - first + kTileRows - 1) / kTileRows, [&](int64_t tile, int worker) {
      float* error = errors[worker].data();
      std::fill_n(error, columns * kTileRows, 0.0f);
      const int64_t begin = first + tile * kTileRows;
      const int64_t rows = std::min<int64_t>(kTileRows, end - begin);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t at = (begin + row) * columns + j;
          error[j * kTileRows + row] = result[at] - weight[at];
        }
      }
      double tile_forms[kTileRows];
      kernels::ExactQuadraticForms(panels, error, tile_forms);
      std::copy_n(tile_forms, rows, forms.data() + begin);
    });
  }
  double total = 0.0;
  if (per_group != nullptr) per_group->clear();
  for (int k = 0; k < groups.groups; ++k) {
    double sum = 0.0;
    for (int64_t row = groups.begin(k); row < groups.begin(k + 1); ++row) sum += forms[row];
    const double mean = sum / static_cast<double>(groups.size(k));
    total += mean;
    if (per_group != nullptr) per_group->push_back(mean);
  }
  return total;
}

}  // namespace gradq
