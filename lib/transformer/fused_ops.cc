#include "lib/transformer/fused_ops.h"

#include <ATen/Parallel.h>
#include <ATen/core/IListRef.h>
#include <ATen/ops/cat_ops.h>
#include <ATen/ops/empty_like_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/silu_ops.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/kernels/attention.h"
#include "lib/kernels/block_ops.h"

namespace gradq {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool g_plain = false;

// Fewer elements than this are not worth a second thread.
constexpr int64_t kGrain = 16384;

at::Tensor EmptyLike(const at::Tensor& tensor) {
  return at::_ops::empty_like::call(tensor, {}, {}, {}, {}, {});
}

at::Tensor EmptyFloat(std::initializer_list<int64_t> sizes) {
  return at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(sizes), at::kFloat, {},
                                             at::kCPU, {}, {});
}

bool OnKernels(const at::Tensor& tensor) {
  return !g_plain && tensor.is_cpu() && tensor.scalar_type() == at::kFloat;
}

// body(begin, end) over rows of `columns` elements; kernels give the same bits for any split.
template <typename Body>
void ForRows(int64_t rows, int64_t columns, Body body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(columns, 1)), body);
}

struct RmsNormFunction : Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, double eps) {
    const at::Tensor x = input.contiguous();
    const int64_t columns = x.size(-1), rows = x.numel() / columns;
    at::Tensor out = EmptyLike(x), scale = EmptyFloat({rows});
    const float* from = x.const_data_ptr<float>();
    const float* w = weight.const_data_ptr<float>();
    float *to = out.mutable_data_ptr<float>(), *s = scale.mutable_data_ptr<float>();
    ForRows(rows, columns, [&](int64_t begin, int64_t end) {
      kernels::RmsNormRows(from + begin * columns, w, static_cast<float>(eps), end - begin, columns,
                           to + begin * columns, s + begin);
    });
    context->save_for_backward({x, weight, scale});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dout = gradients[0].contiguous();
    const int64_t columns = dout.size(-1), rows = dout.numel() / columns;
    at::Tensor dx = EmptyLike(dout);
    const float *x = saved[0].const_data_ptr<float>(), *w = saved[1].const_data_ptr<float>(),
                *s = saved[2].const_data_ptr<float>();
    const float* from = dout.const_data_ptr<float>();
    float* to = dx.mutable_data_ptr<float>();
    ForRows(rows, columns, [&](int64_t begin, int64_t end) {
      kernels::RmsNormBackwardRows(x + begin * columns, w, s + begin, from + begin * columns,
                                   end - begin, columns, to + begin * columns);
    });
    return {dx, at::Tensor(), at::Tensor()};
  }
};

at::Tensor RotateOnKernel(const at::Tensor& input, const at::Tensor& cos, const at::Tensor& sin,
                          bool inverse) {
  const at::Tensor x = input.contiguous();
  at::Tensor out = EmptyLike(x);
  const float *from = x.const_data_ptr<float>(), *c = cos.const_data_ptr<float>(),
              *s = sin.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t positions = x.size(1), heads = x.size(2), head_dim = x.size(3);
  ForRows(x.size(0) * positions, heads * head_dim, [&](int64_t begin, int64_t end) {
    kernels::RotateRows(from, c, s, begin, end, positions, heads, head_dim, inverse, to);
  });
  return out;
}

struct RotateFunction : Function<RotateFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return RotateOnKernel(x, cos, sin, /*inverse=*/false);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    return {RotateOnKernel(gradients[0], saved[0], saved[1], /*inverse=*/true), at::Tensor(),
            at::Tensor()};
  }
};

struct SwigluFunction : Function<SwigluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_input,
                            const at::Tensor& up_input) {
    const at::Tensor gate = gate_input.contiguous(), up = up_input.contiguous();
    at::Tensor out = EmptyLike(gate);
    const float *g = gate.const_data_ptr<float>(), *u = up.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    ForRows(gate.numel(), 1, [&](int64_t begin, int64_t end) {
      kernels::SwigluRange(g + begin, u + begin, end - begin, to + begin);
    });
    context->save_for_backward({gate, up});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dout = gradients[0].contiguous();
    at::Tensor dgate = EmptyLike(dout), dup = EmptyLike(dout);
    const float *g = saved[0].const_data_ptr<float>(), *u = saved[1].const_data_ptr<float>();
    const float* from = dout.const_data_ptr<float>();
    float *to_gate = dgate.mutable_data_ptr<float>(), *to_up = dup.mutable_data_ptr<float>();
    ForRows(dout.numel(), 1, [&](int64_t begin, int64_t end) {
      kernels::SwigluBackwardRange(g + begin, u + begin, from + begin, end - begin, to_gate + begin,
                                   to_up + begin);
    });
    return {dgate, dup};
  }
};

kernels::AttentionShape ShapeOf(const at::Tensor& q, const at::Tensor& k, int64_t window) {
  return {.sequences = q.size(0),
          .tokens = q.size(1),
          .heads = q.size(2),
          .kv_heads = k.size(2),
          .head_dim = q.size(3),
          .window = window};
}

// Tensors [sequences, tokens, heads, head_dim].
struct AttentionFunction : Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q_input,
                            const at::Tensor& k_input, const at::Tensor& v_input, int64_t window) {
    const at::Tensor q = q_input.contiguous(), k = k_input.contiguous(), v = v_input.contiguous();
    const kernels::AttentionShape shape = ShapeOf(q, k, window);
    at::Tensor out = EmptyLike(q),
               log_sums = EmptyFloat({shape.sequences * shape.heads * shape.tokens});
    const float *qs = q.const_data_ptr<float>(), *ks = k.const_data_ptr<float>(),
                *vs = v.const_data_ptr<float>();
    float *to = out.mutable_data_ptr<float>(), *sums = log_sums.mutable_data_ptr<float>();
    at::parallel_for(0, shape.sequences * shape.heads, 1, [&](int64_t begin, int64_t end) {
      kernels::AttentionForward(shape, qs, ks, vs, begin, end, to, sums);
    });
    context->save_for_backward({q, k, v, out, log_sums});
    context->saved_data["window"] = window;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dout = gradients[0].contiguous();
    const kernels::AttentionShape shape =
        ShapeOf(saved[0], saved[1], context->saved_data["window"].toInt());
    at::Tensor dq = EmptyLike(saved[0]), dk = EmptyLike(saved[1]), dv = EmptyLike(saved[2]);
    const float *qs = saved[0].const_data_ptr<float>(), *ks = saved[1].const_data_ptr<float>(),
                *vs = saved[2].const_data_ptr<float>();
    const float *outs = saved[3].const_data_ptr<float>(), *sums = saved[4].const_data_ptr<float>(),
                *from = dout.const_data_ptr<float>();
    float *to_q = dq.mutable_data_ptr<float>(), *to_k = dk.mutable_data_ptr<float>(),
          *to_v = dv.mutable_data_ptr<float>();
    at::parallel_for(0, shape.sequences * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
      kernels::AttentionBackward(shape, qs, ks, vs, outs, sums, from, begin, end, to_q, to_k, to_v);
    });
    return {dq, dk, dv, at::Tensor()};
  }
};

}  // namespace

PlainOps::PlainOps() { g_plain = true; }
PlainOps::~PlainOps() { g_plain = false; }

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (OnKernels(x) && OnKernels(weight) && !weight.requires_grad())
    return RmsNormFunction::apply(x, weight, eps);
  const at::Tensor full = x.to(at::kFloat);
  const at::Tensor scale = full.square().mean(-1, /*keepdim=*/true).add(eps).rsqrt();
  return full.mul(scale).to(weight.scalar_type()).mul(weight);
}

at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  GRADQ_CHECK(x.dim() == 4 && cos.size(0) == x.size(1) && cos.size(1) == x.size(3) &&
              x.size(3) % 2 == 0);
  if (OnKernels(x)) return RotateFunction::apply(x, cos.contiguous(), sin.contiguous());
  const int64_t half = x.size(-1) / 2;
  const std::array<at::Tensor, 2> halves = {x.slice(-1, half).neg(), x.slice(-1, 0, half)};
  const at::Tensor swapped = at::_ops::cat::call(at::TensorList(halves), -1);
  const at::Tensor c = cos.to(x.scalar_type()).unsqueeze(1),
                   s = sin.to(x.scalar_type()).unsqueeze(1);
  return x.mul(c).add(swapped.mul(s));
}

at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up) {
  if (OnKernels(gate) && OnKernels(up)) return SwigluFunction::apply(gate, up);
  return at::_ops::silu::call(gate).mul(up);
}

bool AttentionHasKernel(const at::Tensor& q) { return OnKernels(q); }

at::Tensor CausalAttentionOnKernels(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    int64_t window) {
  GRADQ_CHECK(OnKernels(q) && OnKernels(k) && OnKernels(v));
  GRADQ_CHECK(q.size(1) % k.size(1) == 0 && q.size(2) == k.size(2) && k.sizes() == v.sizes() &&
              q.size(3) == k.size(3));
  return AttentionFunction::apply(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), window)
      .transpose(1, 2);
}

CrossEntropyResult CrossEntropy(at::Tensor logits, const at::Tensor& tokens) {
  const int64_t sequences = tokens.size(0), length = tokens.size(1), vocab = logits.size(2);
  GRADQ_CHECK(logits.dim() == 3 && logits.size(0) == sequences && logits.size(1) == length &&
              length > 1);
  const double weight = 1.0 / static_cast<double>(length - 1);
  const at::Tensor next = tokens.slice(1, 1, length).to(logits.device(), at::kLong);
  if (!OnKernels(logits)) {
    const at::Tensor index = next.unsqueeze(-1);
    const at::Tensor log_probabilities =
        logits.slice(1, 0, length - 1).to(at::kFloat).log_softmax(-1);
    at::Tensor dlogits = log_probabilities.exp();
    dlogits.scatter_(-1, index, dlogits.gather(-1, index).sub(1));
    const at::Tensor last = dlogits.slice(1, 0, 1).mul(0);
    const std::array<at::Tensor, 2> parts = {dlogits.mul(weight), last};
    return {.losses = log_probabilities.gather(-1, index).squeeze(-1).neg(),
            .dlogits = at::_ops::cat::call(at::TensorList(parts), 1).to(logits.scalar_type())};
  }
  logits = logits.contiguous();
  const at::Tensor ids = next.contiguous();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  std::vector<int64_t> targets(sequences * length, -1);
  for (int64_t n = 0; n < sequences; ++n)
    std::copy_n(id + n * (length - 1), length - 1, targets.data() + n * length);
  at::Tensor losses = EmptyFloat({sequences, length});
  float *values = logits.mutable_data_ptr<float>(), *loss = losses.mutable_data_ptr<float>();
  ForRows(sequences * length, vocab, [&](int64_t begin, int64_t end) {
    kernels::CrossEntropyRows(values + begin * vocab, targets.data() + begin, end - begin, vocab,
                              static_cast<float>(weight), loss + begin);
  });
  return {.losses = losses.slice(1, 0, length - 1), .dlogits = logits};
}

}  // namespace gradq
