#pragma once

// Where the weights of a round come from. A round names {base checkpoint, set of shards, t} for
// weights w + t(ŵ - w); round 0 works on the base alone. Stages and solvers read only this
// interface, so a source with shards is one more class.

#include <memory>
#include <utility>

#include "lib/catalog/geometry.h"
#include "lib/format/checkpoint.h"
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

}  // namespace gradq
