#pragma once

// A LinearOp that shows each linear's input and output gradient while a backward pass runs: the one
// place every statistic comes from.

#include <functional>
#include <set>
#include <utility>
#include <vector>

#include "lib/transformer/block.h"

namespace gradq {

// x [tokens, in] and dz [tokens, out] = dL/dZ (undefined in a forward-only pass), tokens =
// sequences × length in order, fp32; detached.
struct Observation {
  int block = 0;
  LinearKind kind = LinearKind::kQ;
  int64_t sequences = 0;
  at::Tensor x;
  at::Tensor dz;
};
using Observer = std::function<void(const Observation&)>;

// (block, kind) of the linears that are observed.
using LinearSet = std::set<std::pair<int, LinearKind>>;

class ObservedLinearOp : public LinearOp {
 public:
  // The observer runs inside backward (or, with forward_only, inside Apply), on the thread that
  // calls, one at a time. Only members of `wanted` are observed.
  ObservedLinearOp(const std::vector<BlockWeights>& weights, int first_block, bool forward_only,
                   LinearSet wanted, Observer observer);
  at::Tensor Apply(int block, LinearKind kind, const at::Tensor& x) override;

 private:
  DenseLinearOp dense_;
  bool forward_only_;
  LinearSet wanted_;
  Observer observer_;
};

}  // namespace gradq
