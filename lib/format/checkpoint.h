#pragma once

// A Hugging Face checkpoint folder: config.json, one or several safetensors files, tokenizer files.
// Reading is lazy; Open checks everything that can be checked without reading weights. Thread-safe
// after Open.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/files.h"
#include "lib/catalog/geometry.h"
#include "lib/format/tensor_source.h"

namespace gradq {

class Checkpoint : public TensorSource {
 public:
  // INVALID_ARGUMENT or FAILED_PRECONDITION naming file and value: missing or invalid config.json,
  // index naming a missing shard or a path outside the folder, bad safetensors header, a tensor
  // missing or of another shape than the geometry's.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(std::unique_ptr<ReadableFolder> folder);

  virtual const ModelGeometry& geometry() const = 0;
  virtual const ReadableFolder& folder() const = 0;
  // Text of config.json.
  virtual const std::string& config_json() const = 0;
  // Names of the safetensors files, in order.
  virtual const std::vector<std::string>& weight_files() const = 0;
  // True when config.json announces a gradq quantization: open it with Artifact::Open instead.
  virtual bool quantized() const = 0;
  // SHA-256 over names, sizes and safetensors headers: says whether two folders hold the same
  // layout, not the same bytes.
  virtual const std::string& layout_digest() const = 0;
};

// Reads every floating-point tensor once and refuses NaN and Inf by name. Slow (reads all bytes).
absl::Status CheckFinite(const Checkpoint& checkpoint);

}  // namespace gradq
