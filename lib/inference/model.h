#pragma once

// A model ready to run: a dense checkpoint, or an artifact whose linears stay packed in memory.
// Used by gradq-inference. Shows no ATen, so that services/ may include it beside .pb.h files.
// Every call on the one compute thread (the one that called SetUpNumerics).

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/files.h"
#include "lib/catalog/geometry.h"

namespace gradq {

class ThreadPool;

// What activations, embeddings and norms are kept and multiplied in; the residual stream is fp32
// everywhere. Default: fp32 on the CPU, bf16 on CUDA, whose range holds the activations of every
// model; the packed kernels take bf16 as fp16, exactly between 2^-14 and 65504.
enum class ComputeType { kDefault, kFloat32, kFloat16, kBFloat16 };
// "float32" on the CPU, "float16" or "bfloat16" on CUDA, "" for the default; INVALID_ARGUMENT.
absl::StatusOr<ComputeType> ParseComputeType(std::string_view word, const std::string& device);

struct LoadOptions {
  std::string device = "cpu";  // or "cuda:0"
  // Any on any device; packed linears in fp16 and bf16 are slow on the CPU (a test's oracle).
  ComputeType compute_type = ComputeType::kDefault;
  // Runs the packed kernels; must outlive the model. Null: they run on the calling thread.
  ThreadPool* pool = nullptr;
  // Bytes free on the device before a model is loaded. Null: asked of the driver on CUDA, taken as
  // enough on the CPU.
  std::function<absl::StatusOr<int64_t>()> free_bytes = nullptr;
};

// Bytes that a model takes on its device.
struct ModelMemory {
  int64_t linears = 0;          // packed or dense, with copies of biases
  int64_t kept = 0;             // embedding, head, norms, biases
  int64_t cache_per_token = 0;  // keys and values of one sequence
  int64_t scratch = 0;          // of the largest pass, estimated (lib/catalog/inference_memory.h)
  int64_t weights() const { return linears + kept; }
};

// INVALID_ARGUMENT when `device` is no device's name; FAILED_PRECONDITION when this build or
// machine cannot compute on it: no CUDA, fewer devices, a compute capability below 8.0; UNAVAILABLE
// when the driver is older than the runtime (with both versions).
absl::Status CheckComputeDevice(const std::string& device);

// Tokens that a model has seen, as their keys and values. Compute thread.
class Sequence {
 public:
  virtual ~Sequence() = default;
  virtual int64_t tokens() const = 0;
};

class Model {
 public:
  virtual ~Model() = default;
  // Decides by config.json whether the folder is dense or quantized, and reads the weights; the
  // folder is not needed afterwards. Errors as Checkpoint::Open and Artifact::Open;
  // INVALID_ARGUMENT naming a tensor with NaN or Inf; RESOURCE_EXHAUSTED when memory does not
  // suffice, with needed and free bytes, on CUDA before a weight is read. What was loaded by then
  // is freed.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ReadableFolder& folder,
                                                     const LoadOptions& options);

  virtual const ModelGeometry& geometry() const = 0;
  virtual ModelMemory memory() const = 0;
  // Resident bytes of weights; packed linears count packed.
  int64_t weight_bytes() const { return memory().weights(); }
  virtual bool quantized() const = 0;

  // Whole windows, for scoring. RunWindows takes `tokens` [sequences × length] through all blocks
  // and keeps the residual stream; row = sequence × length + position. LogProbabilities then gives
  // ln p(next token) for rows [begin, begin + rows), fp32 [rows, vocab], valid until the next call:
  // logits of a large vocabulary are never all in memory. OUT_OF_RANGE when `length` exceeds the
  // model's positions or a token its vocabulary.
  virtual absl::Status RunWindows(std::span<const int32_t> tokens, int64_t sequences) = 0;
  virtual absl::StatusOr<std::span<const float>> LogProbabilities(int64_t begin, int64_t rows) = 0;

  // Decoding with a cache of keys and values, any number of sequences side by side. Decode appends
  // `tokens` and gives the logits [vocab] after the last. OUT_OF_RANGE beyond the model's positions
  // or vocabulary; the sequence is then as before the call. Sequences must not outlive their model.
  virtual std::unique_ptr<Sequence> NewSequence() = 0;
  virtual absl::StatusOr<std::vector<float>> Decode(Sequence& sequence,
                                                    std::span<const int32_t> tokens) = 0;
};

}  // namespace gradq
