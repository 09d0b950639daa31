// The fused ops against the same formulas in ATen ops, forward and backward, at sizes with and
// without tails; and any split over threads gives the same bits.

#include "lib/transformer/fused_ops.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/transformer/block.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

using Outputs = std::vector<at::Tensor>;

// Result and gradients of all inputs of `op` on the kernels, on 1-4 threads, against PlainOps.
void Compare(const std::string& what, const Outputs& inputs,
             const std::function<at::Tensor(const Outputs&)>& op, double tolerance = 2e-6) {
  const auto run = [&] {
    Outputs leaves;
    for (const at::Tensor& input : inputs)
      leaves.push_back(input.detach().clone().requires_grad_(true));
    const at::Tensor out = op(leaves);
    std::vector<int64_t> shape(out.sizes().begin(), out.sizes().end());
    out.backward(Pseudorandom(shape, 99));
    Outputs result = {out.detach()};
    for (const at::Tensor& leaf : leaves) result.push_back(leaf.grad());
    return result;
  };
  Outputs expected, one;
  {
    const PlainOps plain;
    expected = run();
  }
  for (int threads = 1; threads <= 4; ++threads) {
    at::set_num_threads(threads);
    const Outputs actual = run();
    if (threads == 1) one = actual;
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_LT(ScaledDistance(actual[i], expected[i]), tolerance) << what << ", output " << i;
      EXPECT_TRUE(BitEqual(actual[i], one[i]))
          << what << ", output " << i << ", threads " << threads;
    }
  }
  at::set_num_threads(2);
}

TEST(FusedOpsTest, RmsNorm) {
  for (const int64_t columns : {5, 14, 16, 37, 64, 176, 256, 688}) {
    for (const int64_t rows : {1, 3, 511}) {
      const at::Tensor weight = Pseudorandom({columns}, 2);
      Compare("rms norm of " + std::to_string(columns), {Pseudorandom({2, rows, columns}, 1)},
              [&](const Outputs& in) { return RmsNorm(in[0], weight, 1e-5); });
    }
  }
}

TEST(FusedOpsTest, RmsNormGivesWeightGradientsWhenAsked) {
  const at::Tensor x = Pseudorandom({4, 8}, 1), weight = Pseudorandom({8}, 2).requires_grad_(true);
  RmsNorm(x, weight, 1e-5).sum().backward();
  EXPECT_TRUE(weight.grad().defined());
}

TEST(FusedOpsTest, Rotate) {
  for (const int64_t head_dim : {2, 10, 14, 32, 64, 128}) {
    ModelGeometry geometry;
    geometry.head_dim = head_dim;
    const RotaryTable table = MakeRotaryTable(geometry, 75, at::kCPU);
    const at::Tensor cos = table.cos.slice(0, 2, 75), sin = table.sin.slice(0, 2, 75);
    Compare("rotary of " + std::to_string(head_dim), {Pseudorandom({3, 73, 5, head_dim}, 1)},
            [&](const Outputs& in) { return Rotate(in[0], cos, sin); });
  }
}

TEST(FusedOpsTest, Swiglu) {
  for (const int64_t columns : {1, 15, 176, 688}) {
    for (const int64_t rows : {1, 257}) {
      // Up to ±120: both ends of the sigmoid.
      Compare("swiglu of " + std::to_string(columns),
              {Pseudorandom({2, rows, columns}, 1).mul(120), Pseudorandom({2, rows, columns}, 2)},
              [](const Outputs& in) { return Swiglu(in[0], in[1]); });
    }
  }
}

// Against ATen's attention: whole and ragged blocks, windows across block edges, repeated heads,
// any head_dim.
TEST(FusedOpsTest, Attention) {
  for (const int64_t window : {0, 2, 7, 64, 100}) {
    for (const int64_t kv_heads : {1, 2, 6}) {
      for (const auto& [sequences, tokens, head_dim] :
           std::vector<std::array<int64_t, 3>>{{2, 3, 4},
                                               {1, 64, 16},
                                               {3, 63, 10},
                                               {2, 65, 32},
                                               {1, 200, 14},
                                               {2, 130, 48},
                                               {1, 150, 128}}) {
        ModelGeometry geometry;
        geometry.heads = 6;
        geometry.kv_heads = kv_heads;
        geometry.head_dim = head_dim;
        geometry.sliding_window = window;
        const auto heads = [&](int64_t count, uint32_t seed) {
          return Pseudorandom({sequences, tokens, count, head_dim}, seed).mul(2).transpose(1, 2);
        };
        CausalAttention attention(geometry);
        Compare(StrCat("attention of ", tokens, " tokens, head_dim ", head_dim, ", window ", window,
                       ", kv_heads ", kv_heads),
                {heads(6, 1), heads(kv_heads, 2), heads(kv_heads, 3)},
                [&](const Outputs& in) { return attention.Attend(0, in[0], in[1], in[2]); });
      }
    }
  }
}

// Scores far apart: the running maximum must carry the sum over blocks.
TEST(FusedOpsTest, AttentionOfLargeScores) {
  ModelGeometry geometry;
  geometry.heads = geometry.kv_heads = 2;
  geometry.head_dim = 16;
  CausalAttention attention(geometry);
  Compare(
      "attention of large scores",
      {Pseudorandom({1, 2, 200, 16}, 1).mul(40), Pseudorandom({1, 2, 200, 16}, 2).mul(40),
       Pseudorandom({1, 2, 200, 16}, 3)},
      [&](const Outputs& in) { return attention.Attend(0, in[0], in[1], in[2]); }, 2e-4);
}

TEST(FusedOpsTest, CrossEntropy) {
  for (const int64_t vocab : {2, 61, 512, 2048}) {
    for (const int64_t length : {2, 33}) {
      const at::Tensor logits = Pseudorandom({3, length, vocab}, 1).mul(30);
      const at::Tensor tokens =
          Pseudorandom({3, length}, 2).add(1).mul(0.5 * static_cast<double>(vocab)).to(at::kInt);
      CrossEntropyResult expected;
      {
        const PlainOps plain;
        expected = CrossEntropy(logits.clone(), tokens);
      }
      at::Tensor one;
      for (int threads = 1; threads <= 4; ++threads) {
        at::set_num_threads(threads);
        const CrossEntropyResult actual = CrossEntropy(logits.clone(), tokens);
        EXPECT_EQ(actual.losses.sizes(), expected.losses.sizes());
        EXPECT_LT(ScaledDistance(actual.losses, expected.losses), 2e-6) << vocab;
        EXPECT_LT(ScaledDistance(actual.dlogits, expected.dlogits), 2e-6) << vocab;
        if (threads == 1) one = actual.dlogits;
        EXPECT_TRUE(BitEqual(actual.dlogits, one)) << vocab << ", threads " << threads;
      }
      at::set_num_threads(2);
      // The gradient is that of the losses.
      const at::Tensor leaf = logits.clone().requires_grad_(true);
      TokenLosses(leaf, tokens).mean(1).sum().backward();
      EXPECT_LT(ScaledDistance(expected.dlogits, leaf.grad()), 2e-6) << vocab;
    }
  }
}

}  // namespace
}  // namespace gradq
