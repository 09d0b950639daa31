#pragma once

// What a decoder block does for one new token beside its linears, in few launches that a CUDA graph
// can hold: the position is read from memory, so that a recorded step serves every position. On a
// CUDA stream, or on the CPU by plain loops (the oracle). T is args.type in all of them; sums are
// fp32. INTERNAL when a launch fails. Used by lib/inference/decode_step.

#include <cstdint>

#include "absl/status/status.h"
#include "lib/kernels/queue.h"

namespace gradq::kernels {

// residual = row `*token` of an embedding.
struct EmbedTokenArgs {
  FloatType type = FloatType::kFloat16;
  const void* embedding = nullptr;  // T [vocab, hidden]
  const int32_t* token = nullptr;   // [1]
  int64_t hidden = 0;
  float* residual = nullptr;  // [hidden]
};
absl::Status EmbedToken(const Queue& queue, const EmbedTokenArgs& args);

// residual += addend; normed = residual · weight / sqrt(mean residual² + eps).
struct AddRmsNormArgs {
  FloatType type = FloatType::kFloat16;
  float* residual = nullptr;     // [hidden], read and written
  const void* addend = nullptr;  // T [hidden]; null: nothing is added
  const void* weight = nullptr;  // T [hidden]
  float eps = 0;
  int64_t hidden = 0;
  void* normed = nullptr;  // T [hidden]
};
absl::Status AddRmsNorm(const Queue& queue, const AddRmsNormArgs& args);

// Rotary embedding of q and k at `*position` (each head first through an RMS norm where weights are
// given, as qwen3 has it), and k and v appended to the caches.
struct RotaryAppendArgs {
  FloatType type = FloatType::kFloat16;
  const void* q = nullptr;       // T [heads, head_dim]
  const void* k = nullptr;       // T [kv_heads, head_dim]
  const void* v = nullptr;       // T [kv_heads, head_dim]
  const void* q_norm = nullptr;  // T [head_dim] or null
  const void* k_norm = nullptr;
  float eps = 0;
  const float* cos = nullptr;  // [positions, head_dim]
  const float* sin = nullptr;
  const int32_t* position = nullptr;  // [1], below capacity
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;     // even, at most 256
  int64_t capacity = 0;     // of the caches
  void* rotated = nullptr;  // T [heads, head_dim]
  void* keys = nullptr;     // T [kv_heads, capacity, head_dim]
  void* values = nullptr;
};
absl::Status RotaryAppend(const Queue& queue, const RotaryAppendArgs& args);

// softmax(q · keysᵀ / sqrt(head_dim)) · values over positions 0 .. *position (the last `window` of
// them where window > 0), head h reading kv head h / (heads / kv_heads). The positions are cut into
// `splits` parts of fixed bounds that run in parallel; their results are joined in order.
struct TokenAttentionArgs {
  FloatType type = FloatType::kFloat16;
  const void* q = nullptr;     // T [heads, head_dim], rotated
  const void* keys = nullptr;  // T [kv_heads, capacity, head_dim]
  const void* values = nullptr;
  const int32_t* position = nullptr;  // [1]
  int64_t window = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // even, at most 256
  int64_t capacity = 0;
  int64_t splits = 1;
  float* partial = nullptr;  // scratch, TokenAttentionScratch(args) floats; null when 0
  void* out = nullptr;       // T [heads, head_dim]
};
int64_t TokenAttentionScratch(const TokenAttentionArgs& args);
absl::Status TokenAttention(const Queue& queue, const TokenAttentionArgs& args);

// out = silu(gate) · up.
struct SwigluArgs {
  FloatType type = FloatType::kFloat16;
  const void* gate = nullptr;  // T [count]
  const void* up = nullptr;
  int64_t count = 0;
  void* out = nullptr;
};
absl::Status SwigluVector(const Queue& queue, const SwigluArgs& args);

}  // namespace gradq::kernels
