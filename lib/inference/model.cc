#include "lib/inference/model.h"

#include <c10/core/StreamGuard.h>

#include <span>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/artifact.h"
#include "lib/format/checkpoint.h"
#include "lib/inference/compute_device.h"
#include "lib/inference/compute_queue.h"
#include "lib/inference/model_memory.h"
#include "lib/inference/packed_linear.h"
#include "lib/inference/torch_status.h"
#include "lib/inference/transformer_model.h"
#include "lib/kernels/cuda_device.h"

namespace gradq {
namespace {

// A folder that somebody else owns, for readers that want to own theirs.
class BorrowedFolder : public ReadableFolder {
 public:
  explicit BorrowedFolder(const ReadableFolder& folder) : folder_(folder) {}
  std::string_view path() const override { return folder_.path(); }
  absl::StatusOr<std::vector<FolderEntry>> List() const override { return folder_.List(); }
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(std::string_view name) const override {
    return folder_.Open(name);
  }

 private:
  const ReadableFolder& folder_;
};

// What dense and packed models share; `with_linears` false leaves the linears to the caller.
absl::StatusOr<TransformerModel::Parts> LoadParts(const TensorSource& source,
                                                  const ModelGeometry& geometry, at::Device device,
                                                  at::ScalarType type, bool with_linears) {
  TransformerModel::Parts parts;
  parts.geometry = geometry;
  parts.device = device;
  GRADQ_ASSIGN_OR_RETURN(parts.embedding, LoadEmbedding(source, geometry, device, type));
  if (geometry.tied_embeddings) {
    // One copy of the table serves both ends.
    GRADQ_ASSIGN_OR_RETURN(parts.head, LoadHead(source, geometry, device, type));
    parts.head.lm_head = parts.embedding;
  } else {
    GRADQ_ASSIGN_OR_RETURN(parts.head, LoadHead(source, geometry, device, type));
  }
  parts.blocks = std::make_unique<std::vector<BlockWeights>>();
  for (int block = 0; block < geometry.blocks; ++block) {
    GRADQ_ASSIGN_OR_RETURN(BlockWeights weights,
                           LoadBlock(source, geometry, block, device, type, with_linears));
    parts.blocks->push_back(std::move(weights));
  }
  return parts;
}

absl::StatusOr<TransformerModel::Parts> LoadDense(const Checkpoint& checkpoint, at::Device device,
                                                  const LoadOptions& options) {
  const ModelGeometry& geometry = checkpoint.geometry();
  const at::ScalarType type = ScalarTypeOf(options.compute_type, device);
  const ModelMemory needed = MemoryOfDense(geometry, type);
  GRADQ_RETURN_IF_ERROR(
      CheckRoom(options, checkpoint.folder().path(), device, needed.weights() + needed.scratch));
  GRADQ_ASSIGN_OR_RETURN(TransformerModel::Parts parts,
                         LoadParts(checkpoint, geometry, device, type, /*with_linears=*/true));
  parts.linears = std::make_unique<DenseLinearOp>(*parts.blocks, 0);
  parts.by_step = device.is_cuda() && DecodeStep::Serves(geometry);
  return parts;
}

absl::StatusOr<TransformerModel::Parts> LoadPacked(const Artifact& artifact, at::Device device,
                                                   const LoadOptions& options) {
  const ModelGeometry& geometry = artifact.geometry();
  const at::ScalarType type = ScalarTypeOf(options.compute_type, device);
  const PackedForm form = FormOf(device, type);
  const ModelMemory needed = MemoryOfArtifact(artifact, form, type);
  GRADQ_RETURN_IF_ERROR(
      CheckRoom(options, artifact.folder().path(), device, needed.weights() + needed.scratch));
  GRADQ_ASSIGN_OR_RETURN(
      TransformerModel::Parts parts,
      LoadParts(artifact.dense(), geometry, device, type, /*with_linears=*/false));
  auto linears = std::make_unique<PackedLinearOp>(*parts.blocks, form, device, options.pool);
  for (int block = 0; block < geometry.blocks; ++block) {
    for (const std::span<const LinearKind> kinds : kInputGroups) {
      std::vector<QuantizedLinear> read;
      for (const LinearKind kind : kinds) {
        GRADQ_ASSIGN_OR_RETURN(QuantizedLinear linear,
                               artifact.ReadLinear(LinearName(block, kind)));
        GRADQ_RETURN_IF_ERROR(Validate(linear));
        read.push_back(std::move(linear));
      }
      linears->Set(block, kinds, read);
    }
  }
  parts.quantized = true;
  parts.linear_bytes = linears->bytes();
  parts.panel_weights = PanelWeightsOf(form);
  parts.by_step = device.is_cuda() && linears->all_tiles() && DecodeStep::Serves(geometry);
  parts.linears = std::move(linears);
  return parts;
}

absl::StatusOr<TransformerModel::Parts> LoadAny(const ReadableFolder& folder, at::Device device,
                                                const LoadOptions& options) {
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                         Checkpoint::Open(std::make_unique<BorrowedFolder>(folder)));
  if (!checkpoint->quantized()) return LoadDense(*checkpoint, device, options);
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Artifact> artifact,
                         Artifact::Open(std::make_unique<BorrowedFolder>(folder)));
  return LoadPacked(*artifact, device, options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ReadableFolder& folder,
                                                   const LoadOptions& options) {
  GRADQ_RETURN_IF_ERROR(CheckComputeDevice(options.device));
  GRADQ_ASSIGN_OR_RETURN(const at::Device device, ParseDevice(options.device));
  int multiprocessors = 1;
  if (device.is_cuda()) {
    GRADQ_ASSIGN_OR_RETURN(const kernels::CudaDevice properties,
                           kernels::QueryCudaDevice(device.index()));
    multiprocessors = properties.multiprocessors;
  }
  std::unique_ptr<Model> model;
  const absl::Status status = TorchStatus(StrCat("loading ", folder.path()), [&]() -> absl::Status {
    const c10::StreamGuard stream(ComputeStream(device));
    GRADQ_ASSIGN_OR_RETURN(TransformerModel::Parts parts, LoadAny(folder, device, options));
    parts.multiprocessors = multiprocessors;
    model = std::make_unique<TransformerModel>(std::move(parts));
    return absl::OkStatus();
  });
  if (!status.ok()) {
    // Nothing of what was loaded lives any more, but libtorch keeps its memory.
    ReleaseCachedMemory(device);
    return status;
  }
  return model;
}

}  // namespace gradq
