#include "lib/kernels/tile_matmul.h"

#include <limits>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda/launch.h"
#include "lib/kernels/tile_matmul_cpu.h"

namespace gradq::kernels {
namespace {

absl::Status CheckMatrix(const TileView& matrix) {
  if (!HasTileKernels(matrix.encoding, matrix.bits)) {
    return absl::InvalidArgumentError(
        StrCat("no tile kernels of this width: ", matrix.bits, " bits, ",
               matrix.encoding == TileEncoding::kLut ? "lut" : "affine"));
  }
  // Kernels count rows, columns and 16-byte vectors of codes in 32 bits.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  const bool rows_fit = matrix.out_features >= 1 && matrix.out_features <= kMost;
  const bool columns_fit = matrix.in_features >= 1 && matrix.in_features <= kMost;
  const int64_t tiles = (matrix.out_features + kMmaRows - 1) / kMmaRows;
  const int64_t vectors = VectorsPerChunk(matrix.bits) * int64_t{kWarpLanes};
  if (!rows_fit || !columns_fit || matrix.codes == nullptr ||
      matrix.chunks > std::numeric_limits<uint32_t>::max() / tiles / vectors) {
    return absl::InvalidArgumentError(StrCat(
        "not a tile matrix of a usable size: ", matrix.out_features, " x ", matrix.in_features));
  }
  return absl::OkStatus();
}

absl::Status CheckProduct(const TileView& matrix, const TileMatmulArgs& args, int64_t most) {
  GRADQ_RETURN_IF_ERROR(CheckMatrix(matrix));
  if (args.type == FloatType::kFloat32) {
    return absl::InvalidArgumentError("tile products take float16 and bfloat16, not float32");
  }
  if (args.batch < 1 || args.batch > most) {
    return absl::InvalidArgumentError(
        StrCat("batch outside 1 .. ", most, " of this tile product: ", args.batch));
  }
  if (args.x == nullptr || args.y == nullptr) {
    return absl::InvalidArgumentError("tile product without x or y");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TileMatvec(const Queue& queue, const TileView& matrix, const TileMatmulArgs& args) {
  GRADQ_RETURN_IF_ERROR(CheckProduct(matrix, args, kTileMatvecBatch));
  if (queue.is_cuda()) return TileMatvecCuda(matrix, args, queue.stream());
  TileMatmulCpu(matrix, args);
  return absl::OkStatus();
}

absl::Status TileMatmul(const Queue& queue, const TileView& matrix, const TileMatmulArgs& args) {
  GRADQ_RETURN_IF_ERROR(CheckProduct(matrix, args, kTileMatmulBatch));
  if (queue.is_cuda()) return TileMatmulCuda(matrix, args, queue.stream());
  TileMatmulCpu(matrix, args);
  return absl::OkStatus();
}

absl::Status TileDequantize(const Queue& queue, const TileView& matrix, int64_t begin, int64_t end,
                            FloatType type, void* out) {
  GRADQ_RETURN_IF_ERROR(CheckMatrix(matrix));
  if (begin < 0 || begin % kMmaRows != 0 || begin >= end || end > matrix.out_features) {
    return absl::InvalidArgumentError(
        StrCat("no such rows to dequantize: [", begin, ", ", end, ") of ", matrix.out_features));
  }
  if (out == nullptr) return absl::InvalidArgumentError("rows to dequantize without a place");
  if (queue.is_cuda()) return TileDequantizeCuda(matrix, begin, end, type, out, queue.stream());
  TileDequantizeCpu(matrix, begin, end, type, out);
  return absl::OkStatus();
}

}  // namespace gradq::kernels
