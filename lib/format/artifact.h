#pragma once

// The quantized folder (design: FORMAT.md): written by the coordinator streaming over shards, read
// by inference and `gradq inspect`.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/catalog/export_formats.h"
#include "lib/format/checkpoint.h"
#include "lib/format/quantized_linear.h"

namespace gradq {

// Newest version of FORMAT.md that is read; the second came with outliers. What has none is written
// as the first, so that older readers take it.
inline constexpr int kArtifactVersion = 2;
inline constexpr int kVersionWithoutOutliers = 1;

// The tensors of a checkpoint that an artifact keeps as they are.
std::vector<TensorShape> DenseTensorsOf(const ModelGeometry& geometry);

struct ArtifactSummary {
  int64_t bytes = 0;        // of all files
  double average_bits = 0;  // over quantized weights
  std::string digest;       // SHA-256 over sorted "name size sha256\n" lines, report.json left out
};

struct ArtifactInputs {
  const Checkpoint* original = nullptr;
  // Resolved recipe and digests of inputs as canonical JSON text (an object), stored in gradq.json
  // under "recipe".
  std::string recipe_json;
  std::string numerics_class;
  // Shard bytes by linear name, the same at every call. Called twice per linear, in checkpoint
  // order: for the sizes and records that headers need, then for the bytes. That everything is
  // checked before the first byte is written is worth the second read.
  std::function<absl::StatusOr<std::string>(const std::string& linear)> read_shard;
  // Largest safetensors file, bytes.
  int64_t file_limit = int64_t{4} << 30;
};

// Writes every file of the artifact except report.json into `folder` (an AtomicFolder's staging).
// One linear or one slice of a tensor in memory at a time. INVALID_ARGUMENT when a shard
// contradicts the original's geometry; RESOURCE_EXHAUSTED when the disk is full.
absl::StatusOr<ArtifactSummary> WriteArtifact(const ArtifactInputs& inputs,
                                              const std::string& folder);

class Artifact {
 public:
  virtual ~Artifact() = default;
  // INVALID_ARGUMENT / FAILED_PRECONDITION naming file and value; UNIMPLEMENTED for a newer format
  // version.
  static absl::StatusOr<std::unique_ptr<Artifact>> Open(std::unique_ptr<ReadableFolder> folder);

  virtual const ModelGeometry& geometry() const = 0;
  virtual const ReadableFolder& folder() const = 0;
  // Tensors kept in source dtype (embeddings, norms, biases, lm_head).
  virtual const TensorSource& dense() const = 0;
  // Names in checkpoint order.
  virtual const std::vector<std::string>& linears() const = 0;
  // What exports and kernels ask before they read it; the linear must be one of linears().
  virtual ExportedLinear Describe(const std::string& name) const = 0;
  // With the record of gradq.json.
  virtual absl::StatusOr<QuantizedLinear> ReadLinear(const std::string& name) const = 0;
  // Text of gradq.json.
  virtual const std::string& gradq_json() const = 0;
};

}  // namespace gradq
