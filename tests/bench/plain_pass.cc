#include "tests/bench/plain_pass.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <chrono>
#include <memory>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/format/checkpoint.h"
#include "lib/transformer/block.h"
#include "lib/transformer/fused_ops.h"

namespace gradq {

absl::StatusOr<double> PlainPassSeconds(const std::string& folder,
                                        const std::vector<int32_t>& tokens, int64_t length,
                                        int64_t batch) {
  GRADQ_ASSIGN_OR_RETURN(auto local, OpenLocalFolder(folder));
  GRADQ_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(std::move(local)));
  const ModelGeometry& geometry = checkpoint->geometry();
  std::vector<BlockWeights> blocks;
  for (int block = 0; block < geometry.blocks; ++block) {
    GRADQ_ASSIGN_OR_RETURN(BlockWeights weights, LoadBlock(*checkpoint, geometry, block, at::kCPU,
                                                           at::kFloat, /*with_linears=*/true));
    for (at::Tensor& weight : weights.weight) weight.set_requires_grad(true);
    blocks.push_back(std::move(weights));
  }
  GRADQ_ASSIGN_OR_RETURN(at::Tensor embedding,
                         LoadEmbedding(*checkpoint, geometry, at::kCPU, at::kFloat));
  GRADQ_ASSIGN_OR_RETURN(HeadWeights head, LoadHead(*checkpoint, geometry, at::kCPU, at::kFloat));
  embedding.set_requires_grad(true);
  head.lm_head.set_requires_grad(true);
  const RotaryTable rotary = MakeRotaryTable(geometry, length, at::kCPU);

  const PlainOps plain;  // a plain pass has none of the project's own kernels
  const auto start = std::chrono::steady_clock::now();
  const int64_t sequences = static_cast<int64_t>(tokens.size()) / length;
  for (int64_t first = 0; first < sequences; first += batch) {
    const int64_t count = std::min(batch, sequences - first);
    const at::Tensor ids = at::from_blob(const_cast<int32_t*>(tokens.data()) + first * length,
                                         {count, length}, at::kInt)
                               .to(at::kLong);
    DenseLinearOp linears(blocks, 0);
    CausalAttention attention(geometry);
    at::Tensor x = Embed(embedding, ids);
    for (int block = 0; block < geometry.blocks; ++block) {
      x = RunBlock(geometry, blocks[static_cast<size_t>(block)], rotary, block, x, linears,
                   attention);
    }
    TokenLosses(Logits(geometry, head, x), ids).mean().backward();
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace gradq
