#include "lib/inference/packed_linear.h"

#include <ATen/ops/arange_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/linear_ops.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/base/status_macros.h"

namespace gradq {
namespace {

// Weights decoded at a time: large enough for an efficient product, small enough for the cache.
constexpr int64_t kPanelWeights = int64_t{1} << 19;
constexpr int64_t kPanelRows = 64;

at::Tensor Empty(std::vector<int64_t> shape, at::ScalarType type) {
  return at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), type, {}, at::kCPU,
                                             {}, {});
}

template <typename T>
at::Tensor CopyOf(const std::vector<T>& values, std::vector<int64_t> shape, at::ScalarType type) {
  at::Tensor tensor = Empty(std::move(shape), type);
  GRADQ_CHECK(tensor.nbytes() == values.size() * sizeof(T));
  std::memcpy(tensor.mutable_data_ptr(), values.data(), tensor.nbytes());
  return tensor;
}

int64_t RowsPerPanel(int64_t in_features, int64_t out_features) {
  return std::min(out_features, std::max(kPanelRows, kPanelWeights / in_features));
}

void Multiply(const kernels::LutMatrix& matrix, const float* x, int64_t batch, float* y,
              ThreadPool* pool) {
  kernels::LutMatmul(matrix, x, batch, y, pool);
}
void Multiply(const kernels::AffineMatrix& matrix, const float* x, int64_t batch, float* y,
              ThreadPool* pool) {
  kernels::AffineMatmul(matrix, x, batch, y, pool);
}
void DecodeRows(const kernels::LutMatrix& matrix, int64_t begin, int64_t end, float* out,
                ThreadPool* pool) {
  kernels::DequantizeLutRows(matrix, begin, end, out, pool);
}
void DecodeRows(const kernels::AffineMatrix& matrix, int64_t begin, int64_t end, float* out,
                ThreadPool* pool) {
  kernels::DequantizeAffineRows(matrix, begin, end, out, pool);
}

}  // namespace

struct PackedLinearOp::DeviceLinear {
  int64_t out_features = 0;
  int64_t in_features = 0;
  int bits = 0;
  at::Tensor packed;                  // int32 [out, words]
  at::Tensor lut;                     // fp16 [out, 2^bits], or
  at::Tensor scale;                   // fp16 [out, groups]
  at::Tensor zero_point;              // uint8 [out, groups]
  at::Tensor word, next_word, shift;  // int64 [in]: where each column's code begins
  at::Tensor group;                   // int64 [in]
  // Outliers of row r: entries outlier_begin[r] .. outlier_begin[r + 1] - 1 of the other two.
  std::vector<int64_t> outlier_begin;
  at::Tensor outlier_at;     // int64, row · in + column
  at::Tensor outlier_value;  // fp16

  DeviceLinear(const QuantizedLinear& linear, at::Device device)
      : out_features(linear.out_features), in_features(linear.in_features), bits(linear.bits) {
    const int64_t words = static_cast<int64_t>(linear.packed.size()) / out_features;
    packed = CopyOf(linear.packed, {out_features, words}, at::kInt).to(device);
    const at::Tensor column =
        at::_ops::arange::call(in_features, at::kLong, at::kStrided, device, false);
    const at::Tensor bit = column.mul(bits);
    word = bit.div(32, "floor");
    shift = bit.remainder(32);
    next_word = word.add(1).clamp_max(words - 1);
    if (!linear.outliers.empty()) SetOutliers(linear.outliers, device);
    if (linear.encoding == Encoding::kLut) {
      lut = CopyOf(linear.lut, {out_features, int64_t{1} << bits}, at::kHalf).to(device);
      return;
    }
    const int64_t groups = static_cast<int64_t>(linear.scale.size()) / out_features;
    scale = CopyOf(linear.scale, {out_features, groups}, at::kHalf).to(device);
    zero_point = CopyOf(linear.zero_point, {out_features, groups}, at::kByte).to(device);
    group = column.div(linear.group_size, "floor");
  }

  void SetOutliers(const SparseOutliers& outliers, at::Device device) {
    const int64_t runs = OutlierChunks(in_features);
    std::vector<int64_t> places;
    for (int64_t row = 0; row < out_features; ++row) {
      outlier_begin.push_back(outliers.row_ptr[row * runs]);
      for (int64_t run = 0; run < runs; ++run) {
        for (int64_t i = outliers.row_ptr[row * runs + run];
             i < outliers.row_ptr[row * runs + run + 1]; ++i) {
          places.push_back(row * in_features + run * kOutlierChunk + outliers.col[i]);
        }
      }
    }
    const auto count = static_cast<int64_t>(places.size());
    outlier_begin.push_back(count);
    outlier_at = CopyOf(places, {count}, at::kLong).to(device);
    outlier_value = CopyOf(outliers.value, {count}, at::kHalf).to(device);
  }

  // Rows [begin, end) of the weights in `type`.
  at::Tensor Decode(int64_t begin, int64_t end, at::ScalarType type) const {
    const at::Tensor dense = DecodeCodes(begin, end, outlier_at.defined() ? at::kFloat : type);
    if (!outlier_at.defined()) return dense;
    const int64_t first = outlier_begin[begin], last = outlier_begin[end];
    // Every place comes once, so nothing depends on the order of the sums.
    dense.view(-1).index_add_(0, outlier_at.slice(0, first, last).sub(begin * in_features),
                              outlier_value.slice(0, first, last).to(at::kFloat));
    return dense.to(type);
  }

  at::Tensor DecodeCodes(int64_t begin, int64_t end, at::ScalarType type) const {
    const at::Tensor words = packed.slice(0, begin, end).to(at::kLong).bitwise_and(0xffffffff);
    // Two words hold every code whole; the upper one may reach the sign, which no code reads.
    const at::Tensor pairs = words.index_select(1, word).bitwise_or(
        words.index_select(1, next_word).mul(int64_t{1} << 32));
    const at::Tensor codes =
        pairs.__rshift__(shift.unsqueeze(0)).bitwise_and((int64_t{1} << bits) - 1);
    if (lut.defined()) return lut.slice(0, begin, end).gather(1, codes).to(type);
    const at::Tensor zero = zero_point.slice(0, begin, end).to(at::kLong).index_select(1, group);
    const at::Tensor steps = scale.slice(0, begin, end).to(at::kFloat).index_select(1, group);
    return codes.sub(zero).to(at::kFloat).mul(steps).to(type);
  }

  int64_t bytes() const {
    int64_t total = static_cast<int64_t>(packed.nbytes());
    for (const at::Tensor* tensor : {&lut, &scale, &zero_point, &outlier_at, &outlier_value}) {
      if (tensor->defined()) total += static_cast<int64_t>(tensor->nbytes());
    }
    return total;
  }
};

PackedLinearOp::PackedLinearOp(const std::vector<BlockWeights>& weights, at::Device device,
                               ThreadPool* pool, bool kernels)
    : weights_(weights),
      device_(device),
      kernels_(kernels && device.is_cpu()),
      pool_(pool),
      linears_(weights.size() * kLinearsPerBlock) {}

PackedLinearOp::~PackedLinearOp() = default;

void PackedLinearOp::Set(int block, LinearKind kind, const QuantizedLinear& linear) {
  Packed& packed = linears_[block * kLinearsPerBlock + static_cast<int>(kind)];
  if (!kernels_) {
    packed = std::make_unique<DeviceLinear>(linear, device_);
    return;
  }
  kernels::SparseRows sparse(linear.outliers.row_ptr, linear.outliers.col, linear.outliers.value,
                             linear.in_features);
  if (linear.encoding == Encoding::kLut) {
    kernels::LutMatrix matrix(linear.packed, linear.lut, linear.out_features, linear.in_features,
                              linear.bits, pool_);
    matrix.SetSparse(std::move(sparse));
    packed = std::move(matrix);
  } else {
    kernels::AffineMatrix matrix(linear.packed, linear.scale, linear.zero_point,
                                 linear.out_features, linear.in_features, linear.bits,
                                 linear.group_size);
    matrix.SetSparse(std::move(sparse));
    packed = std::move(matrix);
  }
}

at::Tensor PackedLinearOp::Panel(int64_t rows, int64_t columns) {
  if (!scratch_.defined() || scratch_.numel() < rows * columns) {
    scratch_ = Empty({rows * columns}, at::kFloat);
  }
  return scratch_.slice(0, 0, rows * columns).view({rows, columns});
}

at::Tensor PackedLinearOp::ApplyOnHost(const Packed& packed, const at::Tensor& x) {
  return std::visit(
      [&](const auto& matrix) -> at::Tensor {
        using Matrix = std::decay_t<decltype(matrix)>;
        if constexpr (std::is_same_v<Matrix, kernels::LutMatrix> ||
                      std::is_same_v<Matrix, kernels::AffineMatrix>) {
          const int64_t tokens = x.size(0);
          const int64_t out = matrix.out_features();
          at::Tensor y = Empty({tokens, out}, at::kFloat);
          if (tokens <= kernels::kLutMatmulBatch) {
            Multiply(matrix, x.const_data_ptr<float>(), tokens, y.mutable_data_ptr<float>(), pool_);
            return y;
          }
          const int64_t step = RowsPerPanel(matrix.in_features(), out);
          for (int64_t begin = 0; begin < out; begin += step) {
            const int64_t end = std::min(begin + step, out);
            const at::Tensor panel = Panel(end - begin, matrix.in_features());
            DecodeRows(matrix, begin, end, panel.mutable_data_ptr<float>(), pool_);
            at::Tensor columns = y.slice(1, begin, end);
            at::_ops::mm_out::call(x, panel.t(), columns);
          }
          return y;
        }
        GRADQ_CHECK(false);  // a linear that was never set
      },
      packed);
}

at::Tensor PackedLinearOp::Apply(int block, LinearKind kind, const at::Tensor& x) {
  const int index = static_cast<int>(kind);
  const Packed& packed = linears_[block * kLinearsPerBlock + index];
  const at::Tensor flat = x.reshape({-1, x.size(-1)}).contiguous();
  at::Tensor y;
  if (const auto* device = std::get_if<std::unique_ptr<DeviceLinear>>(&packed)) {
    const DeviceLinear& linear = **device;
    y = flat.new_empty({flat.size(0), linear.out_features});
    const int64_t step = RowsPerPanel(linear.in_features, linear.out_features);
    for (int64_t begin = 0; begin < linear.out_features; begin += step) {
      const int64_t end = std::min(begin + step, linear.out_features);
      at::Tensor columns = y.slice(1, begin, end);
      at::_ops::mm_out::call(flat, linear.Decode(begin, end, flat.scalar_type()).t(), columns);
    }
  } else {
    y = ApplyOnHost(packed, flat);
  }
  const at::Tensor& bias = weights_[block].bias[index];
  if (bias.defined()) y.add_(bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = y.size(1);
  return y.view(shape);
}

int64_t PackedLinearOp::bytes() const {
  int64_t total = 0;
  for (const Packed& packed : linears_) {
    if (const auto* lut = std::get_if<kernels::LutMatrix>(&packed)) total += lut->bytes();
    if (const auto* affine = std::get_if<kernels::AffineMatrix>(&packed)) total += affine->bytes();
    if (const auto* device = std::get_if<std::unique_ptr<DeviceLinear>>(&packed)) {
      total += (*device)->bytes();
    }
  }
  return total;
}

}  // namespace gradq
