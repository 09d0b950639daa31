// Packed matrices in widths and groups that have no kernel of ours on the device: rows are decoded
// by ATen.

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange_ops.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <vector>

#include "lib/inference/packed_matrix.h"

namespace gradq {
namespace {

class AtenLinear : public PackedMatrix {
 public:
  AtenLinear(const QuantizedLinear& linear, at::Device device)
      : out_features_(linear.out_features), in_features_(linear.in_features), bits_(linear.bits) {
    const int64_t words = static_cast<int64_t>(linear.packed.size()) / out_features_;
    packed_ = Upload(linear.packed, {out_features_, words}, at::kInt, device);
    const at::Tensor column =
        at::_ops::arange::call(in_features_, at::kLong, at::kStrided, device, false);
    const at::Tensor bit = column.mul(bits_);
    word_ = bit.div(32, "floor");
    shift_ = bit.remainder(32);
    next_word_ = word_.add(1).clamp_max(words - 1);
    if (!linear.outliers.empty()) SetOutliers(linear.outliers, device);
    if (linear.encoding == Encoding::kLut) {
      lut_ = Upload(linear.lut, {out_features_, int64_t{1} << bits_}, at::kHalf, device);
      return;
    }
    const int64_t groups = static_cast<int64_t>(linear.scale.size()) / out_features_;
    scale_ = Upload(linear.scale, {out_features_, groups}, at::kHalf, device);
    zero_point_ = Upload(linear.zero_point, {out_features_, groups}, at::kByte, device);
    group_ = column.div(linear.group_size, "floor");
  }

  at::Tensor Multiply(const at::Tensor& x, const at::Tensor& bias) override {
    at::Tensor y = x.new_empty({x.size(0), out_features_});
    const int64_t step = PanelRows(kHostPanelWeights, in_features_, out_features_);
    for (int64_t begin = 0; begin < out_features_; begin += step) {
      const int64_t end = std::min(begin + step, out_features_);
      at::Tensor columns = y.slice(1, begin, end);
      at::_ops::mm_out::call(x, Decode(begin, end, x.scalar_type()).t(), columns);
    }
    if (bias.defined()) y.add_(bias);
    return y;
  }

  int64_t bytes() const override {
    int64_t total = static_cast<int64_t>(packed_.nbytes());
    for (const at::Tensor* tensor : {&lut_, &scale_, &zero_point_, &outlier_at_, &outlier_value_}) {
      if (tensor->defined()) total += static_cast<int64_t>(tensor->nbytes());
    }
    return total;
  }

 private:
  void SetOutliers(const SparseOutliers& outliers, at::Device device) {
    const int64_t runs = OutlierChunks(in_features_);
    std::vector<int64_t> places;
    for (int64_t row = 0; row < out_features_; ++row) {
      outlier_begin_.push_back(outliers.row_ptr[row * runs]);
      for (int64_t run = 0; run < runs; ++run) {
        for (int64_t i = outliers.row_ptr[row * runs + run];
             i < outliers.row_ptr[row * runs + run + 1]; ++i) {
          places.push_back(row * in_features_ + run * kOutlierChunk + outliers.col[i]);
        }
      }
    }
    const auto count = static_cast<int64_t>(places.size());
    outlier_begin_.push_back(count);
    outlier_at_ = Upload(places, {count}, at::kLong, device);
    outlier_value_ = Upload(outliers.value, {count}, at::kHalf, device);
  }

  // Rows [begin, end) of the weights in `type`.
  at::Tensor Decode(int64_t begin, int64_t end, at::ScalarType type) const {
    at::Tensor dense = DecodeCodes(begin, end, outlier_at_.defined() ? at::kFloat : type);
    if (!outlier_at_.defined()) return dense;
    const int64_t first = outlier_begin_[begin], last = outlier_begin_[end];
    // Every place comes once, so nothing depends on the order of the sums.
    dense.view(-1).index_add_(0, outlier_at_.slice(0, first, last).sub(begin * in_features_),
                              outlier_value_.slice(0, first, last).to(at::kFloat));
    return dense.to(type);
  }

  at::Tensor DecodeCodes(int64_t begin, int64_t end, at::ScalarType type) const {
    const at::Tensor words = packed_.slice(0, begin, end).to(at::kLong).bitwise_and(0xffffffff);
    // Two words hold every code whole; the upper one may reach the sign, which no code reads.
    const at::Tensor pairs = words.index_select(1, word_).bitwise_or(
        words.index_select(1, next_word_).mul(int64_t{1} << 32));
    const at::Tensor codes =
        pairs.__rshift__(shift_.unsqueeze(0)).bitwise_and((int64_t{1} << bits_) - 1);
    if (lut_.defined()) return lut_.slice(0, begin, end).gather(1, codes).to(type);
    const at::Tensor zero = zero_point_.slice(0, begin, end).to(at::kLong).index_select(1, group_);
    const at::Tensor steps = scale_.slice(0, begin, end).to(at::kFloat).index_select(1, group_);
    return codes.sub(zero).to(at::kFloat).mul(steps).to(type);
  }

  int64_t out_features_;
  int64_t in_features_;
  int bits_;
  at::Tensor packed_;                    // int32 [out, words]
  at::Tensor lut_;                       // fp16 [out, 2^bits], or
  at::Tensor scale_;                     // fp16 [out, groups]
  at::Tensor zero_point_;                // uint8 [out, groups]
  at::Tensor word_, next_word_, shift_;  // int64 [in]: where each column's code begins
  at::Tensor group_;                     // int64 [in]
  // Outliers of row r: entries outlier_begin_[r] .. outlier_begin_[r + 1] - 1 of the other two.
  std::vector<int64_t> outlier_begin_;
  at::Tensor outlier_at_;     // int64, row · in + column
  at::Tensor outlier_value_;  // fp16
};

}  // namespace

std::unique_ptr<PackedMatrix> MakeAtenMatrix(const QuantizedLinear& linear, at::Device device) {
  return std::make_unique<AtenLinear>(linear, device);
}

}  // namespace gradq
