#include "lib/kernels/cuda/token_attention.cuh"

#include "absl/status/status.h"
#include "lib/kernels/cuda/decode_launch.cuh"
#include "lib/kernels/cuda/launch.h"

namespace gradq::kernels {

absl::Status TokenAttentionCuda(const TokenAttentionArgs& args, void* stream) {
  return LaunchTokenAttention(args, StreamLaunch(stream));
}

}  // namespace gradq::kernels
