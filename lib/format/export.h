#pragma once

// Writes an artifact in a format of somebody else's: one writer per row of
// lib/catalog/export_formats.h, in lib/format/exports. Called by `gradq export`.
//
// any-precision: the folder of Any-Precision LLM and GuidedQuant: every linear as `qweight` I32
//   [bits, out, in / 32] (bit planes, the highest first; word and bit of a column as their kernel
//   reads them) and `lut{bits}` F16 [out, 2^bits], "anyprec" in config.json. Their tool writes
//   pytorch_model.bin; this writes model.safetensors with the same names, which their loader
//   (accelerate's load_checkpoint_and_dispatch) takes as well, and no pickle is made or read.
// compressed-tensors: the artifact's own tensors, announced as pack-quantized.
// dense-bf16: fake-quantized, `weight` BF16 of every linear, outliers added; config.json says so in
//   a member "gradq_fake_quantized". It is as large as the original and no faster.
//
// Tensors that were not quantized keep dtype and bytes; tokenizer files are copied. gradq.json is
// not: what is written is no gradq artifact.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/catalog/export_formats.h"
#include "lib/format/artifact.h"

namespace gradq {

// What of each linear decides which formats can hold the artifact, in checkpoint order.
std::vector<ExportedLinear> ExportedLinearsOf(const Artifact& artifact);

// Writes all files into `folder` (an AtomicFolder's staging), one linear in memory at a time.
// INVALID_ARGUMENT for an unknown format; FAILED_PRECONDITION when the format can't hold the
// artifact, naming those that can; what Artifact::ReadLinear and FileWriter return.
absl::Status ExportArtifact(const Artifact& artifact, std::string_view format,
                            const std::string& folder, int64_t file_limit = int64_t{4} << 30);

}  // namespace gradq
