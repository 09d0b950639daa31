#pragma once

// A statistic sums the observations of one linear in a fixed order: observation by observation,
// tiles inside one fixed by shape alone, so the result has the same bits for any number of threads,
// workers and stages. Rows of the table: lib/catalog/statistics.h. On the CPU symmetric sums are
// held as packed triangles all along; on other devices as full squares until Finish.

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/geometry.h"

namespace gradq {

class ThreadPool;

// c of the papers: gradients are scaled by it before they are squared (keeps fp16 users from
// underflow; kept for comparability).
inline constexpr double kGradientScale = 1e3;

struct StatisticTensor {
  std::string name;  // "fisher_blocks/0" (per group), "fisher_diagonal", "output_fisher"
  at::Tensor
      value;  // fp32 on CPU; symmetric matrices as packed lower triangles [d*(d+1)/2], row by row
};

class Statistic {
 public:
  virtual ~Statistic() = default;
  // What follows was observed with the weights of a node of the round's path, whose gradients count
  // `coefficient` times; it starts with the first sequence again. Without it: one node, coefficient
  // 1. Statistics of more than one node's observations make sense where this is overridden.
  virtual void BeginNode(double /*coefficient*/) {}
  // x [tokens, in], dz [tokens, out] fp32 (dz undefined when the row needs no gradient); tokens =
  // sequences × length, in order.
  virtual void Accumulate(const at::Tensor& x, const at::Tensor& dz, int64_t sequences) = 0;
  // Moves the sums out; the object is empty afterwards.
  virtual std::vector<StatisticTensor> Finish() = 0;
};

// `name`: a row of the statistics catalog. `groups` is ignored where it does not apply. `pool`
// (used on the CPU only) must outlive the result. INVALID_ARGUMENT for an unknown name, or groups
// outside [1, out_features].
absl::StatusOr<std::unique_ptr<Statistic>> MakeStatistic(std::string_view name,
                                                         int64_t out_features, int64_t in_features,
                                                         int groups, at::Device device,
                                                         ThreadPool* pool);

// What a statistic is made for.
struct StatisticSetup {
  int64_t out_features = 0;
  int64_t in_features = 0;
  int groups = 1;
  at::Device device = at::kCPU;
  ThreadPool* pool = nullptr;
  // weight_gradient: only the first so many sequences of a node (0: all); absolute values per
  // sequence are added.
  int64_t gradient_sequences = 0;
  bool gradient_absolute = false;
};
// As above, with what single statistics may vary.
absl::StatusOr<std::unique_ptr<Statistic>> MakeStatistic(std::string_view name,
                                                         const StatisticSetup& setup);

// Binds each row of the catalog to its implementation.
struct StatisticBinding {
  std::string_view name;
  std::unique_ptr<Statistic> (*make)(const StatisticSetup& setup);
};
std::span<const StatisticBinding> StatisticBindings();

}  // namespace gradq
