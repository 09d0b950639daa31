#pragma once

// What a model will take before a weight of it is read, from the headers of its files. Counts as
// Model::memory() does; in tile form up to a partly filled group of outliers per row tile too much.
// Thread-safe.

#include <c10/core/ScalarType.h>

#include "lib/catalog/geometry.h"
#include "lib/format/artifact.h"
#include "lib/inference/model.h"
#include "lib/inference/packed_linear.h"

namespace gradq {

// `type`: in which the model computes.
ModelMemory MemoryOfDense(const ModelGeometry& geometry, c10::ScalarType type);
ModelMemory MemoryOfArtifact(const Artifact& artifact, PackedForm form, c10::ScalarType type);

}  // namespace gradq
