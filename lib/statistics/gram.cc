// gram: XᵀX, all that the plain objective needs.

#include "lib/catalog/statistics.h"
#include "lib/kernels/token_products.h"
#include "lib/kernels/triangle.h"
#include "lib/statistics/statistic_internal.h"

namespace gradq {
namespace {

class Gram : public Statistic {
 public:
  explicit Gram(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({kernels::TriangleSize(setup.in_features)}, at::kCPU)) {}

  void Accumulate(const at::Tensor& x, const at::Tensor& /*dz*/, int64_t /*sequences*/) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    kernels::AccumulateGram(inputs.const_data_ptr<float>(), inputs.size(0), setup_.in_features,
                            sum_.mutable_data_ptr<float>(), setup_.pool);
  }

  std::vector<StatisticTensor> Finish() override { return {{std::string(kGram), std::move(sum_)}}; }

 private:
  StatisticSetup setup_;
  at::Tensor sum_;
};

class DeviceGram : public Statistic {
 public:
  explicit DeviceGram(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({setup.in_features, setup.in_features}, setup.device)) {}

  void Accumulate(const at::Tensor& x, const at::Tensor& /*dz*/, int64_t /*sequences*/) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    sum_.addmm_(inputs.t(), inputs);
  }

  std::vector<StatisticTensor> Finish() override {
    const at::Tensor sum = std::move(sum_);
    return {{std::string(kGram), PackTriangle(sum)}};
  }

 private:
  StatisticSetup setup_;
  at::Tensor sum_;
};

}  // namespace

std::unique_ptr<Statistic> MakeGram(const StatisticSetup& setup) {
  if (!setup.device.is_cpu()) return MakeGramOnDevice(setup);
  return std::make_unique<Gram>(setup);
}

std::unique_ptr<Statistic> MakeGramOnDevice(const StatisticSetup& setup) {
  return std::make_unique<DeviceGram>(setup);
}

}  // namespace gradq
