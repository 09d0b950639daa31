#include "lib/inference/packed_linear.h"

#include <ATen/core/IListRef.h>
#include <ATen/ops/cat_ops.h>

#include <utility>

#include "lib/base/status_macros.h"
#include "lib/inference/fuse_rows.h"

namespace gradq {

PackedForm FormOf(at::Device device, at::ScalarType type) {
  if (type != at::kFloat) return PackedForm::kTile;
  return device.is_cpu() ? PackedForm::kHost : PackedForm::kAten;
}

int64_t PanelWeightsOf(PackedForm form) {
  return form == PackedForm::kTile ? kTilePanelWeights : kHostPanelWeights;
}

PackedLinearOp::PackedLinearOp(const std::vector<BlockWeights>& weights, PackedForm form,
                               at::Device device, ThreadPool* pool)
    : weights_(weights),
      form_(form),
      device_(device),
      pool_(pool),
      places_(weights.size() * kLinearsPerBlock) {
  GRADQ_CHECK(form != PackedForm::kHost || device.is_cpu());
}

void PackedLinearOp::Set(int block, std::span<const LinearKind> kinds,
                         std::span<const QuantizedLinear> linears) {
  GRADQ_CHECK(kinds.size() == linears.size() && !kinds.empty());
  const QuantizedLinear& first = linears.front();
  if (kinds.size() > 1 && form_ == PackedForm::kTile && CanFuseRows(linears) &&
      ThereAreTileKernels(first.encoding, first.bits, first.group_size)) {
    Add(block, kinds, FuseRows(linears), linears);
    return;
  }
  for (size_t i = 0; i < kinds.size(); ++i)
    Add(block, kinds.subspan(i, 1), linears[i], linears.subspan(i, 1));
}

void PackedLinearOp::Add(int block, std::span<const LinearKind> kinds, const QuantizedLinear& rows,
                         std::span<const QuantizedLinear> linears) {
  Group group;
  const bool tiles =
      form_ == PackedForm::kTile && ThereAreTileKernels(rows.encoding, rows.bits, rows.group_size);
  all_tiles_ &= tiles;
  if (form_ == PackedForm::kHost) {
    group.matrix = MakeHostMatrix(rows, pool_, &scratch_);
  } else if (tiles) {
    group.matrix = MakeTileMatrix(rows, device_, pool_, &scratch_);
  } else {
    group.matrix = MakeAtenMatrix(rows, device_);
  }
  group.bias = FusedBias(block, kinds, linears);
  group.own_bias = kinds.size() > 1;
  int64_t begin = 0;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const int64_t out = linears[i].out_features;
    places_[block * kLinearsPerBlock + static_cast<int>(kinds[i])] = {
        .group = static_cast<int>(groups_.size()), .begin = begin, .rows = out};
    begin += out;
  }
  groups_.push_back(std::move(group));
}

at::Tensor PackedLinearOp::FusedBias(int block, std::span<const LinearKind> kinds,
                                     std::span<const QuantizedLinear> linears) const {
  std::vector<at::Tensor> parts;
  at::Tensor defined;
  for (const LinearKind kind : kinds) {
    parts.push_back(weights_[block].bias[static_cast<int>(kind)]);
    if (parts.back().defined()) defined = parts.back();
  }
  if (kinds.size() == 1 || !defined.defined()) return defined;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].defined()) parts[i] = defined.new_zeros({linears[i].out_features});
  }
  return at::_ops::cat::call(at::TensorList(parts), 0);
}

const PackedLinearOp::Place& PackedLinearOp::PlaceOf(int block, LinearKind kind) const {
  const Place& place = places_[block * kLinearsPerBlock + static_cast<int>(kind)];
  GRADQ_CHECK(place.group >= 0);  // a linear that was never set
  return place;
}

at::Tensor PackedLinearOp::MultiplyGroup(int group, const at::Tensor& x) {
  const at::Tensor flat = x.reshape({-1, x.size(-1)}).contiguous();
  const at::Tensor y = groups_[group].matrix->Multiply(flat, groups_[group].bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = y.size(1);
  return y.view(shape);
}

at::Tensor PackedLinearOp::Apply(int block, LinearKind kind, const at::Tensor& x) {
  const Place& place = PlaceOf(block, kind);
  return MultiplyGroup(place.group, x).narrow(-1, place.begin, place.rows);
}

std::vector<at::Tensor> PackedLinearOp::ApplyTogether(int block, std::span<const LinearKind> kinds,
                                                      const at::Tensor& x) {
  std::vector<at::Tensor> results;
  int group = -1;
  at::Tensor y;
  for (const LinearKind kind : kinds) {
    const Place& place = PlaceOf(block, kind);
    if (place.group != group) {
      group = place.group;
      y = MultiplyGroup(group, x);
    }
    results.push_back(y.narrow(-1, place.begin, place.rows));
  }
  return results;
}

int64_t PackedLinearOp::bytes() const {
  int64_t total = 0;
  for (const Group& group : groups_) {
    total += group.matrix->bytes();
    if (group.own_bias && group.bias.defined()) {
      total += static_cast<int64_t>(group.bias.nbytes());
    }
  }
  return total;
}

}  // namespace gradq
