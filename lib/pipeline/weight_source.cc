#include "lib/pipeline/weight_source.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {

class PathWeights::Tensors : public TensorSource {
 public:
  Tensors(std::shared_ptr<const Checkpoint> checkpoint, QuantizedByName quantized, double t)
      : checkpoint_(std::move(checkpoint)), quantized_(std::move(quantized)), t_(t) {
    for (const LinearShape& shape : LinearsOf(checkpoint_->geometry())) {
      linear_of_weight_[StrCat(shape.name, ".weight")] = shape.name;
    }
    infos_ = checkpoint_->tensors();
    for (TensorInfo& info : infos_) info = AsRead(std::move(info));
  }

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }

  absl::StatusOr<TensorInfo> Find(std::string_view name) const override {
    GRADQ_ASSIGN_OR_RETURN(TensorInfo info, checkpoint_->Find(name));
    return AsRead(std::move(info));
  }

  absl::Status ReadRange(std::string_view name, int64_t offset,
                         std::span<std::byte> out) const override {
    const auto linear = linear_of_weight_.find(name);
    if (linear == linear_of_weight_.end()) return checkpoint_->ReadRange(name, offset, out);
    // Weights are read whole, slice by slice: the last one stays until the next is asked for.
    std::lock_guard lock(mutex_);
    if (weight_ != name) {
      weight_.clear();
      GRADQ_RETURN_IF_ERROR(Interpolate(linear->first, linear->second));
      weight_ = name;
    }
    const std::span<const std::byte> bytes = std::as_bytes(std::span(values_));
    if (offset < 0 || static_cast<size_t>(offset) > bytes.size() ||
        out.size() > bytes.size() - static_cast<size_t>(offset)) {
      return absl::OutOfRangeError(StrCat("read beyond the end of a tensor: ", name, ", ", offset,
                                          " + ", out.size(), " of ", bytes.size()));
    }
    std::memcpy(out.data(), bytes.data() + offset, out.size());
    return absl::OkStatus();
  }

 private:
  // Interpolated weights are fp32.
  TensorInfo AsRead(TensorInfo info) const {
    if (linear_of_weight_.contains(info.name)) {
      info.dtype = DType::kF32;
      info.bytes = info.elements() * DTypeSize(DType::kF32);
    }
    return info;
  }

  absl::Status Interpolate(const std::string& weight, const std::string& linear) const {
    GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<const QuantizedLinear> quantized,
                           quantized_(linear));
    GRADQ_ASSIGN_OR_RETURN(const TensorInfo info, checkpoint_->Find(weight));
    const std::vector<int64_t> shape = {quantized->out_features, quantized->in_features};
    if (info.shape != shape) {
      return absl::InvalidArgumentError(
          StrCat("quantized linear of another shape than the checkpoint's: ", linear, ", ",
                 shape[0], " x ", shape[1]));
    }
    values_ = Dequantize(*quantized);
    return checkpoint_->VisitFloat32(weight, [&](int64_t first, std::span<const float> original) {
      for (size_t i = 0; i < original.size(); ++i) {
        float& value = values_[static_cast<size_t>(first) + i];
        const double w = original[i];
        value = static_cast<float>(w + t_ * (static_cast<double>(value) - w));
      }
    });
  }

  const std::shared_ptr<const Checkpoint> checkpoint_;
  const QuantizedByName quantized_;
  const double t_;
  std::map<std::string, std::string, std::less<>> linear_of_weight_;
  std::vector<TensorInfo> infos_;
  mutable std::mutex mutex_;
  mutable std::string weight_;  // whose values are here
  mutable std::vector<float> values_;
};

PathWeights::PathWeights(std::shared_ptr<const Checkpoint> checkpoint, QuantizedByName quantized,
                         double t)
    : tensors_(std::make_unique<Tensors>(std::move(checkpoint), std::move(quantized), t)) {}
PathWeights::~PathWeights() = default;

const ModelGeometry& PathWeights::geometry() const { return tensors_->checkpoint().geometry(); }
const TensorSource& PathWeights::tensors() const { return *tensors_; }

}  // namespace gradq
