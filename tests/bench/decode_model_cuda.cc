#include "tests/bench/decode_model_cuda.h"

#include <ATen/ops/empty_ops.h>
#include <ATen/ops/linear_ops.h>

#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/quantized_linear.h"
#include "tests/bench/random_linear_cuda.h"

namespace gradq {
namespace {

constexpr double kDeviation = 0.02;

at::Tensor Random(std::vector<int64_t> shape, at::ScalarType type, at::Device device) {
  const at::Tensor tensor = at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape),
                                                                type, {}, device, {}, {});
  return tensor.normal_(0, kDeviation);
}

at::Tensor Ones(int64_t size, at::ScalarType type, at::Device device) {
  return Random({size}, type, device).fill_(1);
}

QuantizedLinear ToQuantizedLinear(const LinearShape& shape, int bits, double outlier_percent) {
  RandomLinear random =
      MakeRandomLinear(kernels::TileEncoding::kLut, bits, shape.out_features, shape.in_features,
                       outlier_percent, static_cast<uint64_t>(shape.kind));
  QuantizedLinear linear;
  linear.name = shape.name;
  linear.bits = bits;
  linear.out_features = shape.out_features;
  linear.in_features = shape.in_features;
  linear.packed = std::move(random.packed);
  linear.lut = std::move(random.lut);
  const kernels::SparseRows& sparse = random.sparse;
  if (!sparse.empty()) {
    const int64_t pointers = shape.out_features * sparse.runs() + 1;
    linear.outliers.row_ptr.assign(sparse.row_ptr(0), sparse.row_ptr(0) + pointers);
    linear.outliers.col.assign(sparse.col(), sparse.col() + sparse.entries());
    linear.outliers.value.assign(sparse.value(), sparse.value() + sparse.entries());
  }
  GRADQ_CHECK(Validate(linear).ok());
  return linear;
}

}  // namespace

std::string Llama7bConfig(int blocks) {
  return StrCat(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",)",
                R"("hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,)",
                R"("num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,)",
                R"("max_position_embeddings": 4096, "hidden_act": "silu", "rope_theta": 10000.0,)",
                R"("tie_word_embeddings": false, "num_hidden_layers": )", blocks, "}");
}

ModelEnds MakeModelEnds(const ModelGeometry& geometry, at::ScalarType type, at::Device device) {
  ModelEnds ends;
  ends.geometry = geometry;
  ends.embedding = Random({geometry.vocab_size, geometry.hidden_size}, type, device);
  ends.head.norm = Ones(geometry.hidden_size, type, device);
  ends.head.lm_head = Random({geometry.vocab_size, geometry.hidden_size}, type, device);
  ends.blocks.resize(static_cast<size_t>(geometry.blocks));
  for (BlockWeights& block : ends.blocks) {
    block.input_norm = Ones(geometry.hidden_size, type, device);
    block.post_norm = Ones(geometry.hidden_size, type, device);
  }
  return ends;
}

FusedDenseOp::FusedDenseOp(const ModelGeometry& geometry, at::ScalarType type, at::Device device)
    : geometry_(geometry) {
  const int64_t hidden = geometry.hidden_size, up = geometry.intermediate_size;
  const int64_t heads = geometry.heads * geometry.head_dim;
  const int64_t kv_heads = geometry.kv_heads * geometry.head_dim;
  for (int64_t block = 0; block < geometry.blocks; ++block) {
    blocks_.push_back({Random({heads + 2 * kv_heads, hidden}, type, device),
                       Random({hidden, heads}, type, device),
                       Random({2 * up, hidden}, type, device), Random({hidden, up}, type, device)});
  }
}

const at::Tensor& FusedDenseOp::MatrixOf(int block, LinearKind kind) const {
  const Block& weights = blocks_[static_cast<size_t>(block)];
  switch (kind) {
    case LinearKind::kO:
      return weights.o;
    case LinearKind::kGate:
    case LinearKind::kUp:
      return weights.gate_up;
    case LinearKind::kDown:
      return weights.down;
    default:
      return weights.qkv;
  }
}

std::pair<int64_t, int64_t> FusedDenseOp::RowsOf(LinearKind kind) const {
  const int64_t heads = geometry_.heads * geometry_.head_dim;
  const int64_t kv_heads = geometry_.kv_heads * geometry_.head_dim;
  const int64_t rows = LinearOf(geometry_, 0, kind).out_features;
  switch (kind) {
    case LinearKind::kK:
      return {heads, rows};
    case LinearKind::kV:
      return {heads + kv_heads, rows};
    case LinearKind::kUp:
      return {geometry_.intermediate_size, rows};
    default:
      return {0, rows};
  }
}

at::Tensor FusedDenseOp::Apply(int block, LinearKind kind, const at::Tensor& x) {
  const auto [begin, rows] = RowsOf(kind);
  return at::_ops::linear::call(x, MatrixOf(block, kind).narrow(0, begin, rows), {});
}

std::vector<at::Tensor> FusedDenseOp::ApplyTogether(int block, std::span<const LinearKind> kinds,
                                                    const at::Tensor& x) {
  const at::Tensor y = at::_ops::linear::call(x, MatrixOf(block, kinds.front()), {});
  std::vector<at::Tensor> results;
  for (const LinearKind kind : kinds) {
    const auto [begin, rows] = RowsOf(kind);
    results.push_back(y.narrow(-1, begin, rows));
  }
  return results;
}

int64_t FusedDenseOp::bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) {
    total += block.qkv.nbytes() + block.o.nbytes() + block.gate_up.nbytes() + block.down.nbytes();
  }
  return static_cast<int64_t>(total);
}

std::unique_ptr<PackedLinearOp> MakePackedLinears(const ModelEnds& ends, int bits,
                                                  double outlier_percent, ThreadPool* pool) {
  const at::Device device = ends.embedding.device();
  auto op = std::make_unique<PackedLinearOp>(
      ends.blocks, FormOf(device, ends.embedding.scalar_type()), device, pool);
  std::vector<QuantizedLinear> linears;
  for (int kind = 0; kind < kLinearsPerBlock; ++kind) {
    linears.push_back(ToQuantizedLinear(LinearOf(ends.geometry, 0, static_cast<LinearKind>(kind)),
                                        bits, outlier_percent));
  }
  const auto of = [&linears](LinearKind kind, size_t count) {
    return std::span<const QuantizedLinear>(linears).subspan(static_cast<size_t>(kind), count);
  };
  for (int block = 0; block < static_cast<int>(ends.blocks.size()); ++block) {
    op->Set(block, kQkv, of(LinearKind::kQ, 3));
    op->Set(block, LinearKind::kO, linears[static_cast<size_t>(LinearKind::kO)]);
    op->Set(block, kGateUp, of(LinearKind::kGate, 2));
    op->Set(block, LinearKind::kDown, linears[static_cast<size_t>(LinearKind::kDown)]);
  }
  return op;
}

}  // namespace gradq
