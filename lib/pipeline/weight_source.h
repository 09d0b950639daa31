#pragma once

// Where the weights of a round come from. A round names {base checkpoint, set of shards, t} for
// weights w + t(ŵ - w); round 0 works on the base alone. Stages and solvers read only this
// interface.

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "lib/catalog/geometry.h"
#include "lib/format/checkpoint.h"
#include "lib/format/quantized_linear.h"
#include "lib/format/tensor_source.h"

namespace gradq {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const ModelGeometry& geometry() const = 0;
  // Every tensor of the checkpoint by name, with this round's weights. Thread-safe.
  virtual const TensorSource& tensors() const = 0;
};

// The base checkpoint itself.
class BaseWeights : public WeightSource {
 public:
  // shared_ptr: the checkpoint is cached per job while stages of it are loaded.
  explicit BaseWeights(std::shared_ptr<const Checkpoint> checkpoint)
      : checkpoint_(std::move(checkpoint)) {}
  const ModelGeometry& geometry() const override { return checkpoint_->geometry(); }
  const TensorSource& tensors() const override { return *checkpoint_; }

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
};

// A quantized linear by name (without ".weight"). shared_ptr: a cache of parsed shards may drop it
// while it is read.
using QuantizedByName =
    std::function<absl::StatusOr<std::shared_ptr<const QuantizedLinear>>(const std::string&)>;

// The point t of the way from the checkpoint's linears w to quantized ones ŵ: w + t (ŵ - w), in
// fp64 rounded once to fp32, so that t = 1 is ŵ; everything else from the checkpoint. Errors of
// `quantized` come with the read of a linear's weight.
class PathWeights : public WeightSource {
 public:
  PathWeights(std::shared_ptr<const Checkpoint> checkpoint, QuantizedByName quantized, double t);
  ~PathWeights() override;
  const ModelGeometry& geometry() const override;
  const TensorSource& tensors() const override;

 private:
  class Tensors;
  std::unique_ptr<Tensors> tensors_;
};

}  // namespace gradq
