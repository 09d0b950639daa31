// weight_gradient: Σ over nodes of c_k · Σ over sequences of dzᵀX, the gradient of the summed loss
// by each weight (PQI's integrand with Gauss-Legendre weights c_k; GWQ with one node); or of the
// absolute values per sequence.

#include <algorithm>

#include "lib/base/status_macros.h"
#include "lib/catalog/statistics.h"
#include "lib/kernels/token_products.h"
#include "lib/statistics/statistic_internal.h"

namespace gradq {
namespace {

// What both forms share: which sequences count, and by how much.
class WeightGradient : public Statistic {
 public:
  explicit WeightGradient(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({setup.out_features, setup.in_features}, setup.device)) {}

  void BeginNode(double coefficient) override {
    scale_ = static_cast<float>(coefficient);
    seen_ = 0;
  }

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t sequences) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    const at::Tensor gradients = CheckedTokens(dz, setup_.out_features);
    GRADQ_CHECK(inputs.size(0) == gradients.size(0) && sequences > 0 &&
                inputs.size(0) % sequences == 0);
    const int64_t limit = setup_.gradient_sequences;
    const int64_t taken = limit == 0 ? sequences : std::clamp<int64_t>(limit - seen_, 0, sequences);
    seen_ += sequences;
    if (taken > 0) Add(inputs, gradients, taken, inputs.size(0) / sequences);
  }

  std::vector<StatisticTensor> Finish() override {
    const at::Tensor sum = std::move(sum_);
    return {{std::string(kWeightGradient), sum.to(at::kCPU)}};
  }

 protected:
  // Adds the first `sequences` of `length` tokens each.
  virtual void Add(const at::Tensor& inputs, const at::Tensor& gradients, int64_t sequences,
                   int64_t length) {
    kernels::AccumulateGradients(inputs.const_data_ptr<float>(), gradients.const_data_ptr<float>(),
                                 sequences, length, setup_.in_features, setup_.out_features,
                                 setup_.gradient_absolute, scale_, sum_.mutable_data_ptr<float>(),
                                 setup_.pool);
  }

  const StatisticSetup setup_;
  at::Tensor sum_;
  float scale_ = 1;

 private:
  int64_t seen_ = 0;
};

class DeviceWeightGradient : public WeightGradient {
 public:
  using WeightGradient::WeightGradient;

 protected:
  void Add(const at::Tensor& inputs, const at::Tensor& gradients, int64_t sequences,
           int64_t length) override {
    for (int64_t t = 0; t < sequences * length; t += length) {
      const at::Tensor gradient =
          gradients.slice(0, t, t + length).t().matmul(inputs.slice(0, t, t + length));
      sum_.add_(setup_.gradient_absolute ? gradient.abs() : gradient, scale_);
    }
  }
};

}  // namespace

std::unique_ptr<Statistic> MakeWeightGradient(const StatisticSetup& setup) {
  if (!setup.device.is_cpu()) return MakeWeightGradientOnDevice(setup);
  return std::make_unique<WeightGradient>(setup);
}

std::unique_ptr<Statistic> MakeWeightGradientOnDevice(const StatisticSetup& setup) {
  return std::make_unique<DeviceWeightGradient>(setup);
}

}  // namespace gradq
