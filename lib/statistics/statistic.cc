#include "lib/statistics/statistic.h"

#include <ATen/ops/zeros_ops.h>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/statistics.h"
#include "lib/kernels/triangle.h"
#include "lib/statistics/statistic_internal.h"

namespace gradq {
namespace {

constexpr StatisticBinding kBindings[] = {
    {kFisherBlocks, MakeFisherBlocks},
    {kFisherDiagonal, MakeFisherDiagonal},
    {kWeightGradient, MakeWeightGradient},
    {kOutputFisher, MakeOutputFisher},
    {kGram, MakeGram},
};

}  // namespace

std::span<const StatisticBinding> StatisticBindings() { return kBindings; }

absl::StatusOr<std::unique_ptr<Statistic>> MakeStatistic(std::string_view name,
                                                         int64_t out_features, int64_t in_features,
                                                         int groups, at::Device device,
                                                         ThreadPool* pool) {
  return MakeStatistic(name, {.out_features = out_features,
                              .in_features = in_features,
                              .groups = groups,
                              .device = device,
                              .pool = pool});
}

absl::StatusOr<std::unique_ptr<Statistic>> MakeStatistic(std::string_view name,
                                                         const StatisticSetup& setup) {
  GRADQ_ASSIGN_OR_RETURN(const StatisticRow* row, FindStatistic(name));
  if (row->name == kFisherBlocks && (setup.groups < 1 || setup.groups > setup.out_features)) {
    return absl::InvalidArgumentError(
        StrCat("number of groups not between 1 and the rows of the linear: ", setup.groups, ", ",
               setup.out_features));
  }
  for (const StatisticBinding& binding : kBindings) {
    if (binding.name == row->name) return binding.make(setup);
  }
  return absl::InternalError(StrCat("statistic without implementation: ", name));
}

at::Tensor ZeroSums(at::IntArrayRef sizes, at::Device device) {
  return at::_ops::zeros::call(c10::fromIntArrayRefSlow(sizes), at::kFloat, at::kStrided, device,
                               false);
}

at::Tensor CheckedTokens(const at::Tensor& tensor, int64_t features) {
  GRADQ_CHECK(tensor.defined() && tensor.dim() == 2 && tensor.size(1) == features &&
              tensor.scalar_type() == at::kFloat);
  return tensor.contiguous();
}

at::Tensor PackTriangle(const at::Tensor& full) {
  const at::Tensor host = full.to(at::kCPU).contiguous();
  const int64_t order = host.size(0);
  at::Tensor packed = ZeroSums({kernels::TriangleSize(order)}, at::kCPU);
  kernels::FoldTriangle(host.const_data_ptr<float>(), order, packed.mutable_data_ptr<float>());
  return packed;
}

}  // namespace gradq
