// fisher_diagonal: Σ over sequences of (dzᵀX)², the squared weight gradient of each sequence
// (SqueezeLLM's sensitivity).

#include "lib/base/status_macros.h"
#include "lib/catalog/statistics.h"
#include "lib/kernels/token_products.h"
#include "lib/statistics/statistic_internal.h"

namespace gradq {
namespace {

class FisherDiagonal : public Statistic {
 public:
  explicit FisherDiagonal(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({setup.out_features, setup.in_features}, at::kCPU)) {}

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t sequences) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    const at::Tensor gradients = CheckedTokens(dz, setup_.out_features);
    GRADQ_CHECK(inputs.size(0) == gradients.size(0) && sequences > 0 &&
                inputs.size(0) % sequences == 0);
    kernels::AccumulateSquaredGradients(
        inputs.const_data_ptr<float>(), gradients.const_data_ptr<float>(), sequences,
        inputs.size(0) / sequences, setup_.in_features, setup_.out_features,
        sum_.mutable_data_ptr<float>(), setup_.pool);
  }

  std::vector<StatisticTensor> Finish() override {
    return {{std::string(kFisherDiagonal), std::move(sum_)}};
  }

 private:
  StatisticSetup setup_;
  at::Tensor sum_;
};

class DeviceFisherDiagonal : public Statistic {
 public:
  explicit DeviceFisherDiagonal(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({setup.out_features, setup.in_features}, setup.device)) {}

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t sequences) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    const at::Tensor gradients = CheckedTokens(dz, setup_.out_features);
    GRADQ_CHECK(inputs.size(0) == gradients.size(0) && sequences > 0 &&
                inputs.size(0) % sequences == 0);
    const int64_t length = inputs.size(0) / sequences;
    for (int64_t t = 0; t < inputs.size(0); t += length) {
      sum_.add_(
          gradients.slice(0, t, t + length).t().matmul(inputs.slice(0, t, t + length)).square());
    }
  }

  std::vector<StatisticTensor> Finish() override {
    const at::Tensor sum = std::move(sum_);
    return {{std::string(kFisherDiagonal), sum.to(at::kCPU)}};
  }

 private:
  StatisticSetup setup_;
  at::Tensor sum_;
};

}  // namespace

std::unique_ptr<Statistic> MakeFisherDiagonal(const StatisticSetup& setup) {
  if (!setup.device.is_cpu()) return MakeFisherDiagonalOnDevice(setup);
  return std::make_unique<FisherDiagonal>(setup);
}

std::unique_ptr<Statistic> MakeFisherDiagonalOnDevice(const StatisticSetup& setup) {
  return std::make_unique<DeviceFisherDiagonal>(setup);
}

}  // namespace gradq
