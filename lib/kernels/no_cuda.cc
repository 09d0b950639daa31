#include "absl/status/status.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda/launch.h"
#include "lib/kernels/cuda_device.h"

namespace gradq::kernels {
namespace {

absl::Status NoCuda() { return absl::FailedPreconditionError("this build has no CUDA"); }

}  // namespace

absl::StatusOr<int> CudaDeviceCount() { return 0; }

absl::StatusOr<CudaDevice> QueryCudaDevice(int ordinal) {
  return absl::FailedPreconditionError(StrCat("this build has no CUDA: device cuda:", ordinal));
}

absl::Status TileMatvecCuda(const TileView&, const TileMatmulArgs&, void*) { return NoCuda(); }
absl::Status TileMatmulCuda(const TileView&, const TileMatmulArgs&, void*) { return NoCuda(); }
absl::Status TileDequantizeCuda(const TileView&, int64_t, int64_t, FloatType, void*, void*) {
  return NoCuda();
}

absl::Status EmbedTokenCuda(const EmbedTokenArgs&, void*) { return NoCuda(); }
absl::Status AddRmsNormCuda(const AddRmsNormArgs&, void*) { return NoCuda(); }
absl::Status RotaryAppendCuda(const RotaryAppendArgs&, void*) { return NoCuda(); }
absl::Status TokenAttentionCuda(const TokenAttentionArgs&, void*) { return NoCuda(); }
absl::Status SwigluVectorCuda(const SwigluArgs&, void*) { return NoCuda(); }

}  // namespace gradq::kernels
