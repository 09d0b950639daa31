#pragma once

// Causal attention of whole windows, forward and backward, without the matrix of scores: blocks of
// 64 queries and 64 keys, softmax kept as a running maximum and sum (FlashAttention). Heads are
// computed alone, in an order fixed by the shape, so callers may spread the items over threads as
// they like without a bit changing. Repeated keys and values of grouped queries are never copied.

#include <cstdint>

namespace gradq::kernels {

// q and out [sequences, tokens, heads, head_dim]; k and v [sequences, tokens, kv_heads, head_dim];
// heads is a multiple of kv_heads. A query at t sees keys in (t - window, t], all up to t when
// window is 0. Scores are scaled by 1 / sqrt(head_dim).
struct AttentionShape {
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
};

// Items [begin, end) of sequences * heads, item = sequence * heads + head. log_sums [sequences,
// heads, tokens]: ln Σ exp(score) of every query.
void AttentionForward(const AttentionShape& shape, const float* q, const float* k, const float* v,
                      int64_t begin, int64_t end, float* out, float* log_sums);

// Items [begin, end) of sequences * kv_heads, item = sequence * kv_heads + head. `out` and
// `log_sums` as forward left them; dq, dk, dv as q, k, v.
void AttentionBackward(const AttentionShape& shape, const float* q, const float* k, const float* v,
                       const float* out, const float* log_sums, const float* dout, int64_t begin,
                       int64_t end, float* dq, float* dk, float* dv);

}  // namespace gradq::kernels
