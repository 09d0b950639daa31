#include "lib/inference/model.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <charconv>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/artifact.h"
#include "lib/format/checkpoint.h"
#include "lib/inference/packed_linear.h"
#include "lib/inference/torch_status.h"
#include "lib/inference/transformer_model.h"

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

absl::StatusOr<at::Device> ParseDevice(const std::string& device) {
  if (device == "cpu") return at::Device(at::kCPU);
  int ordinal = -1;
  if (device.starts_with("cuda:")) {
    const char* end = device.data() + device.size();
    const auto [rest, error] = std::from_chars(device.data() + 5, end, ordinal);
    if (error == std::errc() && rest == end && ordinal >= 0 && ordinal < 128) {
      return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(ordinal));
    }
  }
  return absl::InvalidArgumentError(StrCat("device is not cpu or cuda:N: ", device));
}

// What dense and packed models share; `with_linears` false leaves the linears to the caller.
absl::StatusOr<TransformerModel::Parts> LoadParts(const TensorSource& source,
                                                  const ModelGeometry& geometry, at::Device device,
                                                  bool with_linears) {
  const at::ScalarType type = device.is_cpu() ? at::kFloat : at::kBFloat16;
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

absl::StatusOr<TransformerModel::Parts> LoadDense(const Checkpoint& checkpoint, at::Device device) {
  GRADQ_ASSIGN_OR_RETURN(TransformerModel::Parts parts, LoadParts(checkpoint, checkpoint.geometry(),
                                                                  device, /*with_linears=*/true));
  parts.linears = std::make_unique<DenseLinearOp>(*parts.blocks, 0);
  return parts;
}

absl::StatusOr<TransformerModel::Parts> LoadPacked(const Artifact& artifact, at::Device device,
                                                   ThreadPool* pool) {
  GRADQ_ASSIGN_OR_RETURN(
      TransformerModel::Parts parts,
      LoadParts(artifact.dense(), artifact.geometry(), device, /*with_linears=*/false));
  auto linears = std::make_unique<PackedLinearOp>(
      *parts.blocks, FormOf(device, parts.embedding.scalar_type()), device, pool);
  static constexpr LinearKind kO[] = {LinearKind::kO}, kDown[] = {LinearKind::kDown};
  static constexpr std::span<const LinearKind> kGroups[] = {kQkv, kO, kGateUp, kDown};
  for (int block = 0; block < artifact.geometry().blocks; ++block) {
    for (const std::span<const LinearKind> kinds : kGroups) {
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
  parts.linears = std::move(linears);
  return parts;
}

absl::StatusOr<TransformerModel::Parts> LoadAny(const ReadableFolder& folder, at::Device device,
                                                ThreadPool* pool) {
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                         Checkpoint::Open(std::make_unique<BorrowedFolder>(folder)));
  if (!checkpoint->quantized()) return LoadDense(*checkpoint, device);
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Artifact> artifact,
                         Artifact::Open(std::make_unique<BorrowedFolder>(folder)));
  return LoadPacked(*artifact, device, pool);
}

}  // namespace

absl::Status CheckComputeDevice(const std::string& device) {
  GRADQ_ASSIGN_OR_RETURN(const at::Device parsed, ParseDevice(device));
  if (parsed.is_cpu()) return absl::OkStatus();
  if (!at::hasCUDA()) {
    return absl::FailedPreconditionError(
        StrCat("this build computes on the CPU only, or the machine has no CUDA driver: ", device));
  }
  const int count = at::detail::getCUDAHooks().deviceCount();
  if (parsed.index() >= count) {
    return absl::FailedPreconditionError(
        StrCat("the machine has fewer CUDA devices: ", device, ", ", count));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ReadableFolder& folder,
                                                   const LoadOptions& options) {
  GRADQ_RETURN_IF_ERROR(CheckComputeDevice(options.device));
  GRADQ_ASSIGN_OR_RETURN(const at::Device device, ParseDevice(options.device));
  std::unique_ptr<Model> model;
  GRADQ_RETURN_IF_ERROR(TorchStatus(StrCat("loading ", folder.path()), [&]() -> absl::Status {
    GRADQ_ASSIGN_OR_RETURN(TransformerModel::Parts parts, LoadAny(folder, device, options.pool));
    model = std::make_unique<TransformerModel>(std::move(parts));
    return absl::OkStatus();
  }));
  return model;
}

}  // namespace gradq
