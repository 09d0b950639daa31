#include "lib/transformer/stage.h"

#include <ATen/ops/linear_ops.h>
#include <c10/core/GradMode.h>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/transformer/fused_ops.h"

namespace gradq {
namespace {

// In fp64, token after token: the sum does not know how the losses were computed in parallel.
double SumInOrder(const at::Tensor& losses) {
  const at::Tensor host = losses.to(at::kCPU).contiguous();
  const float* values = host.const_data_ptr<float>();
  double sum = 0;
  for (int64_t i = 0; i < host.numel(); ++i) sum += values[i];
  return sum;
}

}  // namespace

Stage::Stage(const ModelGeometry& geometry, const Config& config)
    : geometry_(geometry), config_(config), attention_(geometry_) {}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Load(const TensorSource& source,
                                                   const ModelGeometry& geometry,
                                                   const Config& config) {
  if (config.first_block < 0 || config.first_block >= config.end_block ||
      config.end_block > geometry.blocks) {
    return absl::InvalidArgumentError(
        StrCat("stage is not a run of blocks of the model: ", config.first_block, ", ",
               config.end_block, ", ", geometry.blocks));
  }
  std::unique_ptr<Stage> stage(new Stage(geometry, config));
  for (int block = config.first_block; block < config.end_block; ++block) {
    GRADQ_ASSIGN_OR_RETURN(BlockWeights weights, LoadBlock(source, geometry, block, config.device,
                                                           config.compute_dtype, true));
    stage->weights_.push_back(std::move(weights));
  }
  if (stage->is_first()) {
    GRADQ_ASSIGN_OR_RETURN(stage->embedding_,
                           LoadEmbedding(source, geometry, config.device, config.compute_dtype));
  }
  if (stage->is_last()) {
    GRADQ_ASSIGN_OR_RETURN(stage->head_,
                           LoadHead(source, geometry, config.device, config.compute_dtype));
  }
  return stage;
}

LinearSet Stage::linears() const {
  LinearSet set;
  for (int block = config_.first_block; block < config_.end_block; ++block) {
    for (int i = 0; i < kLinearsPerBlock; ++i) set.insert({block, static_cast<LinearKind>(i)});
  }
  return set;
}

at::Tensor Stage::Enter(const at::Tensor& input) const {
  if (!is_first()) {
    GRADQ_CHECK(input.dim() == 3 && input.size(2) == geometry_.hidden_size);
    return input.to(config_.device, at::kFloat);
  }
  GRADQ_CHECK(input.dim() == 2);
  return Embed(embedding_, input).to(at::kFloat);
}

const RotaryTable& Stage::Rotary(int64_t tokens) {
  if (!rotary_.cos.defined() || rotary_.cos.size(0) < tokens)
    rotary_ = MakeRotaryTable(geometry_, tokens, config_.device);
  return rotary_;
}

at::Tensor Stage::Run(int block, const at::Tensor& x, LinearOp& linears) {
  return RunBlock(geometry_, weights_[block - config_.first_block], Rotary(x.size(1)), block, x,
                  linears, attention_);
}

at::Tensor Stage::Forward(const at::Tensor& input, const LinearSet& wanted,
                          const Observer& observer) {
  const c10::AutoGradMode no_graph(false);
  ObservedLinearOp linears(weights_, config_.first_block, /*forward_only=*/true, wanted, observer);
  at::Tensor x = Enter(input);
  for (int block = config_.first_block; block < config_.end_block; ++block)
    x = Run(block, x, linears);
  return x;
}

double Stage::LossSum(const at::Tensor& x, const at::Tensor& tokens) {
  GRADQ_CHECK(is_last());
  const c10::AutoGradMode no_graph(false);
  return SumInOrder(TokenLosses(Logits(geometry_, head_, x.to(config_.device)), tokens));
}

Stage::Gradients Stage::Head(const at::Tensor& x, const at::Tensor& tokens) const {
  const at::Tensor leaf = x.detach().requires_grad_(true);
  at::Tensor normed;
  {
    const c10::AutoGradMode graph(true);
    normed = RmsNorm(leaf, head_.norm, geometry_.rms_norm_eps);
  }
  // The gradient of the logits is known, so the widest part of the model needs no graph.
  const c10::AutoGradMode no_graph(false);
  const CrossEntropyResult loss =
      CrossEntropy(at::_ops::linear::call(normed, head_.lm_head, {}), tokens);
  normed.backward(loss.dlogits.matmul(head_.lm_head));
  return {.dx = leaf.grad(), .loss_sum = SumInOrder(loss.losses)};
}

Stage::Gradients Stage::ForwardBackward(const at::Tensor& input, const at::Tensor& output_gradient,
                                        const at::Tensor& tokens, const LinearSet& wanted,
                                        const Observer& observer) {
  ObservedLinearOp observed(weights_, config_.first_block, /*forward_only=*/false, wanted,
                            observer);
  DenseLinearOp dense(weights_, config_.first_block);
  // Blocks below this one need no backward.
  int lowest = is_first() ? config_.end_block : config_.first_block;
  if (is_first() && !wanted.empty()) lowest = wanted.begin()->first;

  // inputs[b], and with a graph outputs[b], of block first_block + b.
  std::vector<at::Tensor> inputs, outputs;
  at::Tensor x = Enter(input);
  for (int block = config_.first_block; block < config_.end_block; ++block) {
    const bool graph = block >= lowest && !config_.recompute;
    const c10::AutoGradMode mode(graph);
    inputs.push_back(block >= lowest ? x.detach().requires_grad_(true) : at::Tensor());
    const at::Tensor output =
        Run(block, graph ? inputs.back() : x, graph ? static_cast<LinearOp&>(observed) : dense);
    outputs.push_back(graph ? output : at::Tensor());
    x = output.detach();
  }

  Gradients result{.dx = output_gradient};
  if (is_last()) {
    result = Head(x, tokens);
  } else {
    GRADQ_CHECK(output_gradient.defined() && output_gradient.sizes() == x.sizes());
    result.dx = output_gradient.to(config_.device, at::kFloat);
  }
  for (int block = config_.end_block - 1; block >= lowest; --block) {
    const int b = block - config_.first_block;
    if (config_.recompute) {
      const c10::AutoGradMode mode(true);
      outputs[b] = Run(block, inputs[b], observed);
    }
    outputs[b].backward(result.dx);
    result.dx = inputs[b].grad();
    // Frees the block's graph before the next one.
    outputs[b] = at::Tensor();
    inputs[b] = at::Tensor();
  }
  if (is_first()) result.dx = at::Tensor();
  return result;
}

}  // namespace gradq
