#include "lib/inference/model_memory.h"

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "lib/catalog/inference_memory.h"
#include "lib/kernels/tile_matrix.h"

namespace gradq {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t KeptBytes(const ModelGeometry& geometry, int64_t element_bytes) {
  int64_t elements = 0;
  for (const TensorShape& tensor : DenseTensorsOf(geometry)) {
    int64_t size = 1;
    for (const int64_t n : tensor.shape) size *= n;
    elements += size;
  }
  return elements * element_bytes;
}

// In the stored order: codes, tables or scales and zero points, with `entry_bytes` per outlier.
int64_t StoredBytes(const ExportedLinear& linear) {
  const int64_t out = linear.out_features;
  const int64_t codes = out * CeilDiv(linear.in_features * linear.bits, 32) * 4;
  if (linear.encoding == Encoding::kLut) return codes + (out << linear.bits) * 2;
  return codes + out * CeilDiv(linear.in_features, linear.group_size) * 3;
}

int64_t HostBytes(const ExportedLinear& linear) {
  if (linear.outlier_count == 0) return StoredBytes(linear);
  const int64_t starts = linear.out_features * OutlierChunks(linear.in_features) + 1;
  return StoredBytes(linear) + starts * 4 + linear.outlier_count * 4;
}

// A place in the matrix and a value.
int64_t AtenBytes(const ExportedLinear& linear) {
  return StoredBytes(linear) + linear.outlier_count * 10;
}

bool TileKernels(const ExportedLinear& linear) {
  return ThereAreTileKernels(linear.encoding, linear.bits, linear.group_size);
}

int64_t TileBytes(const ExportedLinear& linear) {
  const auto encoding = linear.encoding == Encoding::kLut ? kernels::TileEncoding::kLut
                                                          : kernels::TileEncoding::kAffine;
  return kernels::TileMatrixBytes(encoding, linear.bits, linear.out_features, linear.in_features,
                                  linear.group_size, linear.outlier_count);
}

bool HasBias(const ModelGeometry& geometry, LinearKind kind) {
  return LinearOf(geometry, 0, kind).bias;
}

// Linears that read the same input, as PackedLinearOp::Set takes them.
int64_t GroupBytes(const ModelGeometry& geometry, std::span<const LinearKind> kinds,
                   const std::vector<ExportedLinear>& linears, PackedForm form,
                   int64_t element_bytes) {
  const ExportedLinear& first = linears.front();
  const bool alike = std::all_of(linears.begin(), linears.end(), [&](const ExportedLinear& linear) {
    return linear.encoding == first.encoding && linear.bits == first.bits &&
           linear.group_size == first.group_size;
  });
  if (form == PackedForm::kTile && linears.size() > 1 && alike && TileKernels(first)) {
    ExportedLinear fused = first;
    fused.out_features = fused.outlier_count = 0;
    for (const ExportedLinear& linear : linears) {
      fused.out_features += linear.out_features;
      fused.outlier_count += linear.outlier_count;
    }
    const bool bias = std::any_of(kinds.begin(), kinds.end(),
                                  [&](LinearKind kind) { return HasBias(geometry, kind); });
    return TileBytes(fused) + (bias ? fused.out_features * element_bytes : 0);
  }
  int64_t bytes = 0;
  for (const ExportedLinear& linear : linears) {
    if (form == PackedForm::kHost) {
      bytes += HostBytes(linear);
    } else {
      bytes +=
          form == PackedForm::kTile && TileKernels(linear) ? TileBytes(linear) : AtenBytes(linear);
    }
  }
  return bytes;
}

ModelMemory Shared(const ModelGeometry& geometry, c10::ScalarType type, int64_t panel_weights) {
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(type));
  ModelMemory memory;
  memory.kept = KeptBytes(geometry, element_bytes);
  const auto width = static_cast<double>(element_bytes);
  memory.cache_per_token = static_cast<int64_t>(CacheBytesPerToken(geometry, width));
  memory.scratch = static_cast<int64_t>(ScratchBytes(geometry, width, panel_weights));
  return memory;
}

}  // namespace

ModelMemory MemoryOfDense(const ModelGeometry& geometry, c10::ScalarType type) {
  ModelMemory memory = Shared(geometry, type, 0);
  for (const LinearShape& linear : LinearsOf(geometry)) {
    memory.linears +=
        linear.out_features * linear.in_features * static_cast<int64_t>(c10::elementSize(type));
  }
  return memory;
}

ModelMemory MemoryOfArtifact(const Artifact& artifact, PackedForm form, c10::ScalarType type) {
  const ModelGeometry& geometry = artifact.geometry();
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(type));
  ModelMemory memory = Shared(geometry, type, PanelWeightsOf(form));
  for (int block = 0; block < geometry.blocks; ++block) {
    for (const std::span<const LinearKind> kinds : kInputGroups) {
      std::vector<ExportedLinear> linears;
      for (const LinearKind kind : kinds)
        linears.push_back(artifact.Describe(LinearName(block, kind)));
      memory.linears += GroupBytes(geometry, kinds, linears, form, element_bytes);
    }
  }
  return memory;
}

}  // namespace gradq
