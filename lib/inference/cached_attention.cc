#include "lib/inference/cached_attention.h"

#include <ATen/ops/arange_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

constexpr int64_t kFirstCapacity = 64;

// A copy of `cache` (may be undefined) of `shape`, of which the first `kept` tokens are set.
at::Tensor Grown(const at::Tensor& cache, const std::vector<int64_t>& shape, at::ScalarType type,
                 at::Device device, int64_t kept) {
  at::Tensor larger = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), type, {},
                                                          device, {}, {});
  if (kept > 0) larger.slice(2, 0, kept).copy_(cache.slice(2, 0, kept));
  return larger;
}

}  // namespace

void CachedAttention::Reserve(int64_t tokens) {
  if (tokens <= capacity_) return;
  GRADQ_CHECK(tokens <= geometry_.max_positions);
  int64_t capacity = std::max(capacity_, kFirstCapacity);
  while (capacity < tokens) capacity *= 2;
  capacity = std::min(capacity, geometry_.max_positions);
  const std::vector<int64_t> shape = {1, geometry_.kv_heads, capacity, geometry_.head_dim};
  // All or nothing: where memory does not suffice, the caches stay as they are.
  std::vector<KeyValueCache> larger;
  for (const KeyValueCache& cache : caches_) {
    larger.push_back({.keys = Grown(cache.keys, shape, type_, device_, position_),
                      .values = Grown(cache.values, shape, type_, device_, position_)});
  }
  caches_ = std::move(larger);
  capacity_ = capacity;
}

at::Tensor CachedAttention::Attend(int block, const at::Tensor& q, const at::Tensor& k,
                                   const at::Tensor& v) {
  GRADQ_CHECK(q.size(0) == 1 && position_ + q.size(2) <= capacity_);
  const KeyValueCache& cache = caches_[block];
  cache.keys.slice(2, position_, position_ + q.size(2)).copy_(k);
  cache.values.slice(2, position_, position_ + q.size(2)).copy_(v);
  const int64_t tokens = q.size(2);
  const int64_t window = geometry_.sliding_window;
  // What even the oldest query cannot see is left out.
  const int64_t begin = window > 0 ? std::max<int64_t>(0, position_ - window + 1) : 0;
  const int64_t end = position_ + tokens;
  const at::Tensor keys = cache.keys.slice(2, begin, end);
  const at::Tensor values = cache.values.slice(2, begin, end);

  // The query heads that share a key head become further queries of it: no key is copied.
  const int64_t shared = geometry_.heads / geometry_.kv_heads;
  const at::Tensor queries =
      q.reshape({1, geometry_.kv_heads, shared * tokens, geometry_.head_dim});
  std::optional<at::Tensor> mask;
  if (tokens > 1) {
    const auto positions = [&](int64_t from) {
      return at::_ops::arange_start::call(from, end, at::kLong, at::kStrided, q.device(), false);
    };
    const at::Tensor age = positions(position_).unsqueeze(1).sub(positions(begin).unsqueeze(0));
    at::Tensor hidden = age.lt(0);
    if (window > 0) hidden = hidden.logical_or(age.ge(window));
    mask = hidden.to(q.scalar_type())
               .masked_fill(hidden, -std::numeric_limits<double>::infinity())
               .repeat({shared, 1});
  }
  const at::Tensor result = at::_ops::scaled_dot_product_attention::call(
      queries, keys, values, mask, 0.0, /*is_causal=*/false, std::nullopt, false);
  return result.reshape({1, geometry_.heads, tokens, geometry_.head_dim});
}

}  // namespace gradq
