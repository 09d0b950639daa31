#include "lib/kernels/decode_ops.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/kernels/cuda/launch.h"

namespace gradq::kernels {
namespace {

absl::Status CheckPointers(const char* op, std::initializer_list<const void*> pointers) {
  if (std::find(pointers.begin(), pointers.end(), nullptr) != pointers.end())
    return absl::InvalidArgumentError(StrCat(op, ": null pointer"));
  return absl::OkStatus();
}

// Lengths and positions stay below 2^30, so that kernels may count in 32 bits.
constexpr int64_t kMost = int64_t{1} << 30;

absl::Status CheckLength(const char* op, int64_t length) {
  if (length < 1 || length > kMost)
    return absl::InvalidArgumentError(StrCat(op, ": not a vector's length: ", length));
  return absl::OkStatus();
}

absl::Status CheckHeads(const char* op, int64_t heads, int64_t kv_heads, int64_t head_dim,
                        int64_t capacity) {
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0) {
    return absl::InvalidArgumentError(
        StrCat(op, ": heads not a multiple of kv heads: ", heads, ", ", kv_heads));
  }
  if (head_dim < 2 || head_dim % 2 != 0 || head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(
        StrCat(op, ": head dimension not even or beyond ", kMaxHeadDim, ": ", head_dim));
  }
  if (capacity < 1 || capacity > kMost)
    return absl::InvalidArgumentError(StrCat(op, ": cache of no such capacity: ", capacity));
  return absl::OkStatus();
}

}  // namespace

absl::Status EmbedToken(const Queue& queue, const EmbedTokenArgs& args) {
  GRADQ_RETURN_IF_ERROR(CheckPointers("EmbedToken", {args.embedding, args.token, args.residual}));
  GRADQ_RETURN_IF_ERROR(CheckLength("EmbedToken", args.hidden));
  return queue.is_cuda() ? EmbedTokenCuda(args, queue.stream()) : reference::EmbedToken(args);
}

absl::Status AddRmsNorm(const Queue& queue, const AddRmsNormArgs& args) {
  GRADQ_RETURN_IF_ERROR(CheckPointers("AddRmsNorm", {args.residual, args.weight, args.normed}));
  GRADQ_RETURN_IF_ERROR(CheckLength("AddRmsNorm", args.hidden));
  return queue.is_cuda() ? AddRmsNormCuda(args, queue.stream()) : reference::AddRmsNorm(args);
}

absl::Status RotaryAppend(const Queue& queue, const RotaryAppendArgs& args) {
  GRADQ_RETURN_IF_ERROR(
      CheckPointers("RotaryAppend", {args.q, args.k, args.v, args.cos, args.sin, args.position,
                                     args.rotated, args.keys, args.values}));
  GRADQ_RETURN_IF_ERROR(
      CheckHeads("RotaryAppend", args.heads, args.kv_heads, args.head_dim, args.capacity));
  return queue.is_cuda() ? RotaryAppendCuda(args, queue.stream()) : reference::RotaryAppend(args);
}

int64_t TokenAttentionScratch(const TokenAttentionArgs& args) {
  return args.splits == 1 ? 0 : args.heads * args.splits * (args.head_dim + 2);
}

int64_t TokenAttentionSplits(int64_t kv_heads, int64_t capacity, int64_t multiprocessors) {
  constexpr int64_t kShortest = 128;
  const int64_t wanted = (2 * multiprocessors + kv_heads - 1) / kv_heads;
  const int64_t most = std::min((capacity + kShortest - 1) / kShortest, kMaxAttentionSplits);
  return std::max<int64_t>(1, std::min(wanted, most));
}

absl::Status TokenAttention(const Queue& queue, const TokenAttentionArgs& args) {
  GRADQ_RETURN_IF_ERROR(
      CheckPointers("TokenAttention", {args.q, args.keys, args.values, args.position, args.out}));
  GRADQ_RETURN_IF_ERROR(
      CheckHeads("TokenAttention", args.heads, args.kv_heads, args.head_dim, args.capacity));
  if (args.window < 0)
    return absl::InvalidArgumentError(StrCat("TokenAttention: negative window: ", args.window));
  if (args.splits < 1 || args.splits > kMaxAttentionSplits) {
    return absl::InvalidArgumentError(
        StrCat("TokenAttention: splits not in 1 to ", kMaxAttentionSplits, ": ", args.splits));
  }
  if (TokenAttentionScratch(args) > 0)
    GRADQ_RETURN_IF_ERROR(CheckPointers("TokenAttention", {args.partial}));
  return queue.is_cuda() ? TokenAttentionCuda(args, queue.stream())
                         : reference::TokenAttention(args);
}

absl::Status SwigluVector(const Queue& queue, const SwigluArgs& args) {
  GRADQ_RETURN_IF_ERROR(CheckPointers("SwigluVector", {args.gate, args.up, args.out}));
  GRADQ_RETURN_IF_ERROR(CheckLength("SwigluVector", args.count));
  return queue.is_cuda() ? SwigluVectorCuda(args, queue.stream()) : reference::SwigluVector(args);
}

}  // namespace gradq::kernels
