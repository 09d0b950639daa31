// Every op a pass is made of gives the same bits on 1, 2, 3 and 4 threads, in the shapes and
// layouts the pass uses.

#include "lib/transformer/numerics.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/linear_ops.h>
#include <ATen/ops/mm_ops.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "lib/transformer/block.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

using Outputs = std::vector<at::Tensor>;

void ExpectSameBitsOnAnyThreads(const std::string& what, const std::function<Outputs()>& run) {
  Outputs expected;
  for (int threads = 1; threads <= 4; ++threads) {
    at::set_num_threads(threads);
    const Outputs actual = run();
    if (threads == 1) expected = actual;
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_TRUE(BitEqual(actual[i], expected[i]))
          << what << ", output " << i << ", threads " << threads;
    }
  }
  at::set_num_threads(2);
}

// [m, k] × [k, n] of linears forward and backward: hidden, kv, intermediate and vocabulary sizes of
// both fixtures, and odd ones.
TEST(NumericsTest, ProductsDoNotDependOnThreads) {
  for (const auto& [out, in] : std::vector<std::pair<int64_t, int64_t>>{{256, 256},
                                                                        {128, 256},
                                                                        {688, 256},
                                                                        {256, 688},
                                                                        {2048, 256},
                                                                        {64, 64},
                                                                        {32, 64},
                                                                        {176, 64},
                                                                        {64, 176},
                                                                        {512, 64},
                                                                        {52, 37}}) {
    for (const int64_t tokens : {1, 17, 511, 2048}) {
      const std::string what =
          std::to_string(tokens) + " x " + std::to_string(in) + " x " + std::to_string(out);
      const at::Tensor x = Pseudorandom({tokens, in}, 1), w = Pseudorandom({out, in}, 2),
                       dz = Pseudorandom({tokens, out}, 3);
      const at::Tensor bias = Pseudorandom({out}, 4);
      ExpectSameBitsOnAnyThreads("linear " + what, [&] {
        return Outputs{at::_ops::linear::call(x, w, {}), at::_ops::linear::call(x, w, bias)};
      });
      ExpectSameBitsOnAnyThreads("linear of 3 dimensions " + what, [&] {
        const at::Tensor x3 = x.detach().unsqueeze(0).requires_grad_(true);
        const at::Tensor z = at::_ops::linear::call(x3, w, {});
        z.backward(dz.unsqueeze(0));
        return Outputs{z.detach(), x3.grad()};
      });
      ExpectSameBitsOnAnyThreads("mm " + what, [&] {
        return Outputs{at::_ops::mm::call(dz, w), at::_ops::mm::call(dz.t(), x)};
      });
      ExpectSameBitsOnAnyThreads(
          "addmm " + what, [&] { return Outputs{at::_ops::addmm::call(w, dz.t(), x, 1, 1)}; });
    }
  }
}

TEST(NumericsTest, BatchedProductsDoNotDependOnThreads) {
  for (const int64_t tokens : {33, 512}) {
    const at::Tensor q = Pseudorandom({32, tokens, 32}, 1), k = Pseudorandom({32, tokens, 32}, 2);
    ExpectSameBitsOnAnyThreads("bmm", [&] {
      const at::Tensor scores = at::_ops::bmm::call(q, k.transpose(1, 2));
      return Outputs{scores, at::_ops::bmm::call(scores, k), scores.softmax(-1)};
    });
  }
}

// Attention forward and backward in the layout of RunBlock, with and without window, with and
// without repeated heads.
TEST(NumericsTest, AttentionDoesNotDependOnThreads) {
  for (const int64_t window : {0, 100}) {
    for (const int64_t kv_heads : {1, 4, 8}) {
      for (const auto& [sequences, tokens, head_dim] :
           std::vector<std::array<int64_t, 3>>{{4, 512, 32}, {3, 257, 14}, {1, 700, 64}}) {
        ModelGeometry geometry;
        geometry.heads = 8;
        geometry.kv_heads = kv_heads;
        geometry.head_dim = head_dim;
        geometry.sliding_window = window;
        const auto heads = [&](int64_t count, uint32_t seed) {
          return Pseudorandom({sequences, tokens, count, head_dim}, seed).transpose(1, 2);
        };
        const at::Tensor dz = heads(8, 9);
        ExpectSameBitsOnAnyThreads(
            "attention window " + std::to_string(window) + " kv_heads " + std::to_string(kv_heads),
            [&] {
              CausalAttention attention(geometry);
              const at::Tensor q = heads(8, 1).requires_grad_(true);
              const at::Tensor k = heads(kv_heads, 2).requires_grad_(true),
                               v = heads(kv_heads, 3).requires_grad_(true);
              const at::Tensor z = attention.Attend(0, q, k, v);
              z.backward(dz);
              return Outputs{z.detach(), q.grad(), k.grad(), v.grad()};
            });
      }
    }
  }
}

TEST(NumericsTest, EnvironmentStandsAndNamesTheClass) {
  ASSERT_NE(std::getenv("MKL_CBWR"), nullptr);
  EXPECT_NE(std::string(std::getenv("MKL_CBWR")).find("STRICT"), std::string::npos);
  EXPECT_STREQ(std::getenv("OMP_WAIT_POLICY"), "passive");
  const auto numerics = SetUpNumerics(3, "cuda:1");
  ASSERT_TRUE(numerics.ok());
  EXPECT_NE(numerics->find("torch-2.11.0/mkl-"), std::string::npos) << *numerics;
  EXPECT_TRUE(numerics->ends_with("/cuda")) << *numerics;
  EXPECT_EQ(*numerics, *SetUpNumerics(1, "cuda:0"));
  EXPECT_EQ(at::get_num_threads(), 1);
  EXPECT_EQ(SetUpNumerics(0, "cpu").status().code(), absl::StatusCode::kInvalidArgument);
}

// The compute thread of a worker is not the one that calls SetUpNumerics.
TEST(NumericsTest, ThreadCountHoldsOnEveryThread) {
  ASSERT_TRUE(SetUpNumerics(3, "cpu").ok());
  int threads = 0;
  std::thread([&] { threads = at::get_num_threads(); }).join();
  EXPECT_EQ(threads, 3);
  ASSERT_TRUE(SetUpNumerics(2, "cpu").ok());
}

}  // namespace
}  // namespace gradq
