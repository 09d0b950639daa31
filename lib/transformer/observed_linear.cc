#include "lib/transformer/observed_linear.h"

namespace gradq {
namespace {

// [sequences, tokens, features] -> fp32 [sequences * tokens, features], contiguous, without graph.
at::Tensor Flat(const at::Tensor& tensor) {
  return tensor.detach().reshape({-1, tensor.size(-1)}).to(at::kFloat).contiguous();
}

}  // namespace

ObservedLinearOp::ObservedLinearOp(const std::vector<BlockWeights>& weights, int first_block,
                                   bool forward_only, LinearSet wanted, Observer observer)
    : dense_(weights, first_block),
      forward_only_(forward_only),
      wanted_(std::move(wanted)),
      observer_(std::move(observer)) {}

at::Tensor ObservedLinearOp::Apply(int block, LinearKind kind, const at::Tensor& x) {
  at::Tensor z = dense_.Apply(block, kind, x);
  if (!wanted_.contains({block, kind})) return z;
  if (forward_only_) {
    observer_({block, kind, x.size(0), Flat(x), {}});
  } else if (z.requires_grad()) {
    z.register_hook([this, block, kind, x = x.detach()](const at::Tensor& dz) {
      observer_({block, kind, x.size(0), Flat(x), Flat(dz)});
    });
  }
  return z;
}

}  // namespace gradq
