#include "lib/inference/transformer_model.h"

#include <ATen/ops/empty_ops.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/inference_memory.h"
#include "lib/inference/compute_queue.h"
#include "lib/inference/decode_sequence.h"
#include "lib/inference/torch_status.h"

namespace gradq {
namespace {

// Tokens of a prompt that run at a time: bounds the attention mask and the activations.
constexpr int64_t kPromptPiece = 256;

int64_t BytesOf(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
}

ModelMemory MemoryOf(const TransformerModel::Parts& parts) {
  ModelMemory memory;
  memory.linears = parts.linear_bytes;
  memory.kept = BytesOf(parts.embedding) + BytesOf(parts.head.norm);
  if (!parts.geometry.tied_embeddings) memory.kept += BytesOf(parts.head.lm_head);
  for (const BlockWeights& block : *parts.blocks) {
    for (const at::Tensor* tensor :
         {&block.input_norm, &block.post_norm, &block.q_norm, &block.k_norm}) {
      memory.kept += BytesOf(*tensor);
    }
    for (int i = 0; i < kLinearsPerBlock; ++i) {
      memory.linears += BytesOf(block.weight[i]);
      memory.kept += BytesOf(block.bias[i]);
    }
  }
  const auto element_bytes = static_cast<double>(parts.embedding.element_size());
  memory.cache_per_token = static_cast<int64_t>(CacheBytesPerToken(parts.geometry, element_bytes));
  memory.scratch =
      static_cast<int64_t>(ScratchBytes(parts.geometry, element_bytes, parts.panel_weights));
  return memory;
}

}  // namespace

TransformerModel::TransformerModel(Parts parts)
    : parts_(std::move(parts)), memory_(MemoryOf(parts_)), windows_(parts_.geometry) {
  if (!parts_.by_step) return;
  step_ = std::make_unique<DecodeStep>(DecodeStep::Weights{.geometry = parts_.geometry,
                                                           .embedding = parts_.embedding,
                                                           .head = parts_.head,
                                                           .blocks = *parts_.blocks,
                                                           .linears = *parts_.linears},
                                       parts_.multiprocessors);
}

absl::Status TransformerModel::Compute(std::string_view what,
                                       absl::FunctionRef<absl::Status()> body) const {
  absl::Status status = TorchStatus(what, [&] {
    const c10::InferenceMode no_gradients;
    const c10::StreamGuard stream(ComputeStream(parts_.device));
    return body();
  });
  if (absl::IsResourceExhausted(status)) ReleaseCachedMemory(parts_.device);
  return status;
}

absl::Status TransformerModel::CheckTokens(std::span<const int32_t> tokens,
                                           int64_t end_position) const {
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens");
  const int64_t positions = parts_.geometry.max_positions;
  if (end_position > positions) {
    return absl::OutOfRangeError(
        StrCat("more tokens than the model has positions: ", end_position, ", ", positions));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || token >= parts_.geometry.vocab_size) {
      return absl::OutOfRangeError(
          StrCat("token beyond the model's vocabulary: ", token, ", ", parts_.geometry.vocab_size));
    }
  }
  return absl::OkStatus();
}

const RotaryTable& TransformerModel::Rotary(int64_t positions) {
  const int64_t have = rotary_.cos.defined() ? rotary_.cos.size(0) : 0;
  if (have < positions) {
    const int64_t wanted = std::min(std::max(positions, 2 * have), parts_.geometry.max_positions);
    rotary_ = MakeRotaryTable(parts_.geometry, wanted, parts_.device);
  }
  return rotary_;
}

at::Tensor TransformerModel::Run(std::span<const int32_t> tokens, int64_t sequences,
                                 Attention& attention) {
  const int64_t length = static_cast<int64_t>(tokens.size()) / sequences;
  at::Tensor ids = at::_ops::empty_memory_format::call(
      c10::fromIntArrayRefSlow({sequences, length}), at::kInt, {}, at::kCPU, {}, {});
  std::memcpy(ids.mutable_data_ptr(), tokens.data(), tokens.size_bytes());
  // The residual stream is fp32 whatever the linears compute in.
  at::Tensor x = Embed(parts_.embedding, ids).to(at::kFloat);
  const RotaryTable& rotary = Rotary(attention.position() + length);
  for (int block = 0; block < static_cast<int>(parts_.blocks->size()); ++block) {
    x = RunBlock(parts_.geometry, (*parts_.blocks)[block], rotary, block, x, *parts_.linears,
                 attention);
  }
  return x;
}

absl::Status TransformerModel::RunWindows(std::span<const int32_t> tokens, int64_t sequences) {
  GRADQ_CHECK(sequences >= 1 && tokens.size() % static_cast<size_t>(sequences) == 0);
  GRADQ_RETURN_IF_ERROR(CheckTokens(tokens, static_cast<int64_t>(tokens.size()) / sequences));
  return Compute("forward pass", [&] {
    states_ = Run(tokens, sequences, windows_).view({-1, parts_.geometry.hidden_size});
    return absl::OkStatus();
  });
}

absl::StatusOr<std::span<const float>> TransformerModel::LogProbabilities(int64_t begin,
                                                                          int64_t rows) {
  GRADQ_CHECK(states_.defined() && begin >= 0 && begin + rows <= states_.size(0));
  GRADQ_RETURN_IF_ERROR(Compute("logits", [&] {
    const at::Tensor x = states_.slice(0, begin, begin + rows).unsqueeze(0);
    log_probabilities_ = Logits(parts_.geometry, parts_.head, x)
                             .to(at::kFloat)
                             .log_softmax(-1)
                             .to(at::kCPU)
                             .contiguous();
    return absl::OkStatus();
  }));
  return std::span<const float>(log_probabilities_.const_data_ptr<float>(),
                                static_cast<size_t>(log_probabilities_.numel()));
}

std::unique_ptr<Sequence> TransformerModel::NewSequence() {
  return std::make_unique<DecodeSequence>(parts_.geometry, parts_.embedding.scalar_type(),
                                          parts_.device);
}

at::Tensor TransformerModel::RunPrompt(std::span<const int32_t> tokens,
                                       CachedAttention& attention) {
  at::Tensor x;
  for (size_t done = 0; done < tokens.size();) {
    const size_t piece = std::min<size_t>(kPromptPiece, tokens.size() - done);
    x = Run(tokens.subspan(done, piece), 1, attention);
    attention.Advance(static_cast<int64_t>(piece));
    done += piece;
  }
  return Logits(parts_.geometry, parts_.head, x.slice(1, x.size(1) - 1));
}

absl::StatusOr<std::vector<float>> TransformerModel::Decode(Sequence& sequence,
                                                            std::span<const int32_t> tokens) {
  auto& decoded = dynamic_cast<DecodeSequence&>(sequence);
  CachedAttention& attention = decoded.attention();
  const int64_t before = attention.position();
  const int64_t after = before + static_cast<int64_t>(tokens.size());
  GRADQ_RETURN_IF_ERROR(CheckTokens(tokens, after));
  std::vector<float> logits;
  const absl::Status status = Compute("decoding", [&] {
    attention.Reserve(after);
    at::Tensor last;
    if (step_ != nullptr && tokens.size() == 1) {
      decoded.Decode(tokens[0], Rotary(attention.capacity()), step_.get());
      last = step_->logits();
    } else {
      last = RunPrompt(tokens, attention);
    }
    last = last.to(at::kCPU, at::kFloat).contiguous();
    const float* data = last.const_data_ptr<float>();
    logits.assign(data, data + last.numel());
    return absl::OkStatus();
  });
  if (!status.ok()) {
    attention.Rewind(before);
    return status;
  }
  return logits;
}

}  // namespace gradq
