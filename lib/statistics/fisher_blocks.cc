// fisher_blocks: H̄_k = Xᵀ diag(s_k) X with s_k = mean over the channels of group k of (c·dL/dz)²
// (GuidedQuant, equation of section 3.2).

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/groups.h"
#include "lib/catalog/statistics.h"
#include "lib/kernels/token_products.h"
#include "lib/kernels/triangle.h"
#include "lib/statistics/statistic_internal.h"

namespace gradq {
namespace {

std::string BlockName(int group) { return StrCat(kFisherBlocks, "/", group); }

class FisherBlocks : public Statistic {
 public:
  explicit FisherBlocks(const StatisticSetup& setup) : setup_(setup) {
    const GroupPartition partition{setup.out_features, setup.groups};
    for (int k = 0; k < setup.groups; ++k) {
      group_begin_.push_back(partition.begin(k));
      sums_.push_back(ZeroSums({kernels::TriangleSize(setup.in_features)}, at::kCPU));
      packed_.push_back(sums_.back().mutable_data_ptr<float>());
    }
    group_begin_.push_back(setup.out_features);
  }

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t /*sequences*/) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    const at::Tensor gradients = CheckedTokens(dz, setup_.out_features);
    GRADQ_CHECK(inputs.size(0) == gradients.size(0));
    kernels::AccumulateFisherBlocks(
        inputs.const_data_ptr<float>(), gradients.const_data_ptr<float>(), inputs.size(0),
        setup_.in_features, group_begin_, static_cast<float>(kGradientScale), packed_.data(),
        setup_.pool);
  }

  std::vector<StatisticTensor> Finish() override {
    std::vector<StatisticTensor> result;
    for (int k = 0; k < setup_.groups; ++k) result.push_back({BlockName(k), std::move(sums_[k])});
    sums_.clear();
    packed_.clear();
    return result;
  }

 private:
  StatisticSetup setup_;
  std::vector<int64_t> group_begin_;
  std::vector<at::Tensor> sums_;
  std::vector<float*> packed_;  // of sums_
};

class DeviceFisherBlocks : public Statistic {
 public:
  explicit DeviceFisherBlocks(const StatisticSetup& setup) : setup_(setup) {
    for (int k = 0; k < setup.groups; ++k)
      sums_.push_back(ZeroSums({setup.in_features, setup.in_features}, setup.device));
  }

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t /*sequences*/) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    const at::Tensor squares = CheckedTokens(dz, setup_.out_features).mul(kGradientScale).square();
    const GroupPartition partition{setup_.out_features, setup_.groups};
    for (int k = 0; k < setup_.groups; ++k) {
      const at::Tensor s =
          squares.slice(1, partition.begin(k), partition.begin(k + 1)).mean(1, /*keepdim=*/true);
      sums_[k].addmm_(inputs.t(), inputs.mul(s));
    }
  }

  std::vector<StatisticTensor> Finish() override {
    std::vector<StatisticTensor> result;
    for (int k = 0; k < setup_.groups; ++k)
      result.push_back({BlockName(k), PackTriangle(sums_[k])});
    sums_.clear();
    return result;
  }

 private:
  StatisticSetup setup_;
  std::vector<at::Tensor> sums_;
};

}  // namespace

std::unique_ptr<Statistic> MakeFisherBlocks(const StatisticSetup& setup) {
  if (!setup.device.is_cpu()) return MakeFisherBlocksOnDevice(setup);
  return std::make_unique<FisherBlocks>(setup);
}

std::unique_ptr<Statistic> MakeFisherBlocksOnDevice(const StatisticSetup& setup) {
  return std::make_unique<DeviceFisherBlocks>(setup);
}

}  // namespace gradq
