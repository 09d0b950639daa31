#pragma once

// Attention of one sequence that grows: keys and values of earlier tokens are kept per block.
// Compute thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <vector>

#include "lib/catalog/geometry.h"
#include "lib/inference/model.h"
#include "lib/transformer/block.h"

namespace gradq {

class CachedAttention : public Attention, public Sequence {
 public:
  explicit CachedAttention(const ModelGeometry& geometry)
      : geometry_(geometry), caches_(geometry.blocks) {}

  int64_t tokens() const override { return position_; }
  // Of the next token.
  int64_t position() const override { return position_; }
  // q of one sequence; appends k and v behind position() without moving it, so that every block of
  // a pass sees the same position.
  at::Tensor Attend(int block, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v) override;
  // After all blocks have seen `tokens` more.
  void Advance(int64_t tokens) { position_ += tokens; }

 private:
  struct Cache {
    at::Tensor keys, values;  // [1, kv_heads, capacity, head_dim]
  };

  const ModelGeometry& geometry_;
  int64_t position_ = 0;
  std::vector<Cache> caches_;
};

}  // namespace gradq
