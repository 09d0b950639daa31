// output_fisher: O = Σ_t (mean of x_t²) · (c·dz_t)(c·dz_t)ᵀ, the output side of the Kronecker
// factors O ⊗ H̄_k that the coupled objective stands on. The same sum as a Fisher block with the
// parts of x and dz exchanged.

#include <array>

#include "lib/base/status_macros.h"
#include "lib/catalog/statistics.h"
#include "lib/kernels/token_products.h"
#include "lib/kernels/triangle.h"
#include "lib/statistics/statistic_internal.h"

namespace gradq {
namespace {

class OutputFisher : public Statistic {
 public:
  explicit OutputFisher(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({kernels::TriangleSize(setup.out_features)}, at::kCPU)) {}

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t /*sequences*/) override {
    const at::Tensor inputs = CheckedTokens(x, setup_.in_features);
    const at::Tensor gradients = CheckedTokens(dz, setup_.out_features);
    GRADQ_CHECK(inputs.size(0) == gradients.size(0));
    const std::array<int64_t, 2> all = {0, setup_.in_features};
    float* packed = sum_.mutable_data_ptr<float>();
    kernels::AccumulateFisherBlocks(
        gradients.const_data_ptr<float>(), inputs.const_data_ptr<float>(), inputs.size(0),
        setup_.out_features, all, static_cast<float>(kGradientScale), &packed, setup_.pool);
  }

  std::vector<StatisticTensor> Finish() override {
    return {{std::string(kOutputFisher), std::move(sum_)}};
  }

 private:
  StatisticSetup setup_;
  at::Tensor sum_;
};

class DeviceOutputFisher : public Statistic {
 public:
  explicit DeviceOutputFisher(const StatisticSetup& setup)
      : setup_(setup), sum_(ZeroSums({setup.out_features, setup.out_features}, setup.device)) {}

  void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t /*sequences*/) override {
    const at::Tensor squares = CheckedTokens(x, setup_.in_features).square().mean(1, true);
    const at::Tensor gradients = CheckedTokens(dz, setup_.out_features).mul(kGradientScale);
    sum_.addmm_(gradients.t(), gradients.mul(squares));
  }

  std::vector<StatisticTensor> Finish() override {
    const at::Tensor sum = std::move(sum_);
    return {{std::string(kOutputFisher), PackTriangle(sum)}};
  }

 private:
  StatisticSetup setup_;
  at::Tensor sum_;
};

}  // namespace

std::unique_ptr<Statistic> MakeOutputFisher(const StatisticSetup& setup) {
  if (!setup.device.is_cpu()) return MakeOutputFisherOnDevice(setup);
  return std::make_unique<OutputFisher>(setup);
}

std::unique_ptr<Statistic> MakeOutputFisherOnDevice(const StatisticSetup& setup) {
  return std::make_unique<DeviceOutputFisher>(setup);
}

}  // namespace gradq
