// The plain loops of lib/kernels/decode_ops.h, oracle of the CUDA kernels, against the ATen ops
// that whole windows run on: token after token, they give the rows of a window.

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "lib/base/strings.h"
#include "lib/catalog/geometry.h"
#include "lib/kernels/decode_ops.h"
#include "lib/transformer/block.h"
#include "lib/transformer/fused_ops.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

using kernels::FloatType;
using kernels::Queue;

struct Precision {
  FloatType type;
  at::ScalarType scalar;
  double tolerance;  // ATen rounds to the type more than once
};
constexpr Precision kPrecisions[] = {{FloatType::kFloat32, at::kFloat, 2e-6},
                                     {FloatType::kFloat16, at::kHalf, 2e-3},
                                     {FloatType::kBFloat16, at::kBFloat16, 2e-2}};

at::Tensor Random(std::vector<int64_t> shape, uint32_t seed, const Precision& precision) {
  return Pseudorandom(std::move(shape), seed).to(precision.scalar);
}

void ExpectNear(const at::Tensor& actual, const at::Tensor& expected, const Precision& precision) {
  EXPECT_LT(ScaledDistance(actual.to(at::kFloat), expected.to(at::kFloat)), precision.tolerance);
}

TEST(DecodeOpsOracleTest, EmbedTokenIsARow) {
  for (const Precision& precision : kPrecisions) {
    const at::Tensor embedding = Random({5, 37}, 1, precision);
    at::Tensor residual = Pseudorandom({37}, 2);
    const int32_t token = 3;
    ASSERT_TRUE(kernels::EmbedToken(Queue::Cpu(), {.type = precision.type,
                                                   .embedding = embedding.data_ptr(),
                                                   .token = &token,
                                                   .hidden = 37,
                                                   .residual = residual.data_ptr<float>()})
                    .ok());
    EXPECT_TRUE(BitEqual(residual, embedding.select(0, 3).to(at::kFloat)));
  }
}

TEST(DecodeOpsOracleTest, AddRmsNorm) {
  const PlainOps plain;
  for (const Precision& precision : kPrecisions) {
    const at::Tensor addend = Random({176}, 1, precision), weight = Random({176}, 2, precision);
    at::Tensor residual = Pseudorandom({176}, 3), normed = Random({176}, 4, precision);
    const at::Tensor sum = residual.add(addend);
    ASSERT_TRUE(kernels::AddRmsNorm(Queue::Cpu(), {.type = precision.type,
                                                   .residual = residual.data_ptr<float>(),
                                                   .addend = addend.data_ptr(),
                                                   .weight = weight.data_ptr(),
                                                   .eps = 1e-2f,
                                                   .hidden = 176,
                                                   .normed = normed.data_ptr()})
                    .ok());
    EXPECT_TRUE(BitEqual(residual, sum));
    ExpectNear(normed, RmsNorm(sum, weight, 1e-2f), precision);
  }
}

TEST(DecodeOpsOracleTest, Swiglu) {
  const PlainOps plain;
  for (const Precision& precision : kPrecisions) {
    const at::Tensor gate = Random({301}, 1, precision).mul(8), up = Random({301}, 2, precision);
    at::Tensor out = Random({301}, 3, precision);
    ASSERT_TRUE(kernels::SwigluVector(Queue::Cpu(), {.type = precision.type,
                                                     .gate = gate.data_ptr(),
                                                     .up = up.data_ptr(),
                                                     .count = 301,
                                                     .out = out.data_ptr()})
                    .ok());
    ExpectNear(out, Swiglu(gate, up), precision);
  }
}

struct Window {
  int64_t heads, kv_heads, head_dim, tokens, sliding_window;
  bool norms;
};

// Tokens of q, k, v [1, tokens, heads, head_dim], one after the other through cache and attention.
at::Tensor TokenByToken(const Window& w, const Precision& precision, const at::Tensor& q,
                        const at::Tensor& k, const at::Tensor& v, const at::Tensor& q_norm,
                        const at::Tensor& k_norm, const RotaryTable& table) {
  const int64_t capacity = w.tokens + 2;
  at::Tensor keys = Random({w.kv_heads, capacity, w.head_dim}, 7, precision).mul(NAN);
  at::Tensor values = keys.clone(), rotated = Random({w.heads, w.head_dim}, 8, precision);
  at::Tensor out = q.clone();
  for (int32_t t = 0; t < w.tokens; ++t) {
    const auto row = [&](const at::Tensor& x) { return x.select(1, t).data_ptr(); };
    kernels::RotaryAppendArgs append;
    append.type = precision.type;
    append.q = row(q);
    append.k = row(k);
    append.v = row(v);
    append.q_norm = w.norms ? q_norm.data_ptr() : nullptr;
    append.k_norm = w.norms ? k_norm.data_ptr() : nullptr;
    append.eps = 1e-2f;
    append.cos = table.cos.data_ptr<float>();
    append.sin = table.sin.data_ptr<float>();
    append.position = &t;
    append.heads = w.heads;
    append.kv_heads = w.kv_heads;
    append.head_dim = w.head_dim;
    append.capacity = capacity;
    append.rotated = rotated.data_ptr();
    append.keys = keys.data_ptr();
    append.values = values.data_ptr();
    EXPECT_TRUE(kernels::RotaryAppend(Queue::Cpu(), append).ok());
    kernels::TokenAttentionArgs attend;
    attend.type = precision.type;
    attend.q = rotated.data_ptr();
    attend.keys = keys.data_ptr();
    attend.values = values.data_ptr();
    attend.position = &t;
    attend.window = w.sliding_window;
    attend.heads = w.heads;
    attend.kv_heads = w.kv_heads;
    attend.head_dim = w.head_dim;
    attend.capacity = capacity;
    attend.out = row(out);
    EXPECT_TRUE(kernels::TokenAttention(Queue::Cpu(), attend).ok());
  }
  return out;
}

TEST(DecodeOpsOracleTest, TokenByTokenIsTheWindow) {
  const PlainOps plain;
  for (const Window& w : {Window{4, 2, 16, 11, 0, false}, Window{3, 1, 6, 9, 4, true},
                          Window{2, 2, 64, 5, 8, true}, Window{8, 1, 2, 7, 1, false}}) {
    for (const Precision& precision : kPrecisions) {
      SCOPED_TRACE(StrCat("head_dim ", w.head_dim, " type ", static_cast<int>(precision.type)));
      const at::Tensor q = Random({1, w.tokens, w.heads, w.head_dim}, 1, precision);
      const at::Tensor k = Random({1, w.tokens, w.kv_heads, w.head_dim}, 2, precision);
      const at::Tensor v = Random({1, w.tokens, w.kv_heads, w.head_dim}, 3, precision);
      const at::Tensor q_norm = Random({w.head_dim}, 4, precision).mul(3);
      const at::Tensor k_norm = Random({w.head_dim}, 5, precision).mul(3);
      ModelGeometry geometry;
      geometry.heads = w.heads;
      geometry.kv_heads = w.kv_heads;
      geometry.head_dim = w.head_dim;
      geometry.sliding_window = w.sliding_window;
      const RotaryTable table = MakeRotaryTable(geometry, w.tokens, at::kCPU);
      // The window in fp32: its own roundings to a type are not the ones under test.
      const auto prepared = [&](const at::Tensor& x, const at::Tensor& norm) {
        const at::Tensor full = x.to(at::kFloat);
        return Rotate(w.norms ? RmsNorm(full, norm.to(at::kFloat), 1e-2) : full, table.cos,
                      table.sin)
            .transpose(1, 2);
      };
      const at::Tensor expected =
          CausalAttention(geometry)
              .Attend(0, prepared(q, q_norm), prepared(k, k_norm), v.to(at::kFloat).transpose(1, 2))
              .transpose(1, 2);
      ExpectNear(TokenByToken(w, precision, q, k, v, q_norm, k_norm, table), expected, precision);
    }
  }
}

}  // namespace
}  // namespace gradq
