#include "lib/kernels/cuda/decode_ops.cuh"

#include "absl/status/status.h"
#include "lib/kernels/cuda/decode_launch.cuh"
#include "lib/kernels/cuda/launch.h"

namespace gradq::kernels {

absl::Status EmbedTokenCuda(const EmbedTokenArgs& args, void* stream) {
  return LaunchEmbedToken(args, StreamLaunch(stream));
}

absl::Status AddRmsNormCuda(const AddRmsNormArgs& args, void* stream) {
  return LaunchAddRmsNorm(args, StreamLaunch(stream));
}

absl::Status RotaryAppendCuda(const RotaryAppendArgs& args, void* stream) {
  return LaunchRotaryAppend(args, StreamLaunch(stream));
}

absl::Status SwigluVectorCuda(const SwigluArgs& args, void* stream) {
  return LaunchSwigluVector(args, StreamLaunch(stream));
}

}  // namespace gradq::kernels
