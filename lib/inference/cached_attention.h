#pragma once

// Attention of one sequence that grows: keys and values of earlier tokens are kept per block.
// Compute thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <vector>

#include "lib/catalog/geometry.h"
#include "lib/transformer/block.h"

namespace gradq {

// Of one block: [1, kv_heads, capacity, head_dim].
struct KeyValueCache {
  at::Tensor keys, values;
};

class CachedAttention : public Attention {
 public:
  // Caches in `type` on `device`; `geometry` must outlive this.
  CachedAttention(const ModelGeometry& geometry, at::ScalarType type, at::Device device)
      : geometry_(geometry), type_(type), device_(device), caches_(geometry.blocks) {}

  // Of the next token.
  int64_t position() const override { return position_; }
  // Tokens that fit without another Reserve.
  int64_t capacity() const { return capacity_; }
  // Makes room for `tokens` in all, at most the geometry's positions; capacities double, so that
  // tensors keep their place for a while.
  void Reserve(int64_t tokens);
  const KeyValueCache& cache(int block) const { return caches_[block]; }

  // q of one sequence; appends k and v behind position() without moving it, so that every block of
  // a pass sees the same position. There is room for them.
  at::Tensor Attend(int block, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v) override;
  // After all blocks have seen `tokens` more.
  void Advance(int64_t tokens) { position_ += tokens; }
  // Forgets tokens behind the first `tokens`.
  void Rewind(int64_t tokens) { position_ = tokens; }

 private:
  const ModelGeometry& geometry_;
  const at::ScalarType type_;
  const at::Device device_;
  int64_t position_ = 0;
  int64_t capacity_ = 0;
  std::vector<KeyValueCache> caches_;
};

}  // namespace gradq
