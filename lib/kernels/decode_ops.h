#pragma once

// What a decoder block does for one new token beside its linears, in few launches that a CUDA graph
// can hold: the position is read from memory, and no launch's shape depends on it, so that a
// recorded step serves every position. On a CUDA stream, or on the CPU by plain loops (the oracle).
// T is args.type in all of them. Arithmetic is fp32 with sums in a fixed order (fp64 sums on the
// CPU), rounded to T once at the end: two runs are bit-equal. Outputs may not overlap inputs unless
// said otherwise. INVALID_ARGUMENT for null pointers and sizes without a meaning, INTERNAL when a
// launch fails. Any thread. Used by lib/inference/decode_step.

#include <cstdint>

#include "absl/status/status.h"
#include "lib/kernels/queue.h"

namespace gradq::kernels {

inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kMaxAttentionSplits = 1024;

// residual = row `*token` of an embedding; the token must be in the vocabulary.
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
// given, as qwen3 has it), and k and v appended to the caches. Of a head x = [x1, x2] in halves:
// out[i] = x[i] · cos[i] + [-x2, x1][i] · sin[i]. On the CPU INVALID_ARGUMENT for a position beyond
// the capacity; on a device nothing can look, and the caller must.
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
// them where window > 0), head h reading kv head h / (heads / kv_heads). On a device these
// positions are cut into `splits` parts of ceil(positions / splits) that run in parallel, and the
// results are joined in order: another number of splits is another order of sums. What a cache
// holds behind *position is never read.
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
  int64_t splits = 1;        // at most kMaxAttentionSplits
  float* partial = nullptr;  // scratch, TokenAttentionScratch(args) floats; null when 0
  void* out = nullptr;       // T [heads, head_dim]
};
// 0 for one split, else heads · splits · (head_dim + 2).
int64_t TokenAttentionScratch(const TokenAttentionArgs& args);
// A number of splits for a device: about two blocks per multiprocessor over all kv heads, but no
// split shorter than 128 positions of a full cache. Arithmetic, not measured.
int64_t TokenAttentionSplits(int64_t kv_heads, int64_t capacity, int64_t multiprocessors);
absl::Status TokenAttention(const Queue& queue, const TokenAttentionArgs& args);

// out = silu(gate) · up. `out` may be gate or up.
struct SwigluArgs {
  FloatType type = FloatType::kFloat16;
  const void* gate = nullptr;  // T [count]
  const void* up = nullptr;
  int64_t count = 0;
  void* out = nullptr;
};
absl::Status SwigluVector(const Queue& queue, const SwigluArgs& args);

// The same by plain loops: what the entries above call on the CPU, with checked arguments.
namespace reference {
absl::Status EmbedToken(const EmbedTokenArgs& args);
absl::Status AddRmsNorm(const AddRmsNormArgs& args);
absl::Status RotaryAppend(const RotaryAppendArgs& args);
absl::Status TokenAttention(const TokenAttentionArgs& args);
absl::Status SwigluVector(const SwigluArgs& args);
}  // namespace reference

}  // namespace gradq::kernels
