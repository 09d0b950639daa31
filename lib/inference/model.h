#pragma once

// A model ready to run: a dense checkpoint or an artifact whose linears stay packed. Used by
// gradq-inference. One caller at a time.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/files.h"
#include "lib/catalog/geometry.h"

namespace gradq {

class ThreadPool;

struct LoadOptions {
  std::string device = "cpu";
  ThreadPool* pool = nullptr;
};

class Model {
 public:
  virtual ~Model() = default;
  // Decides by config.json whether the folder is dense or quantized. Errors as Checkpoint::Open and
  // Artifact::Open.
  static absl::StatusOr<std::unique_ptr<Model>> Load(std::unique_ptr<ReadableFolder> folder,
                                                     const LoadOptions& options);

  virtual const ModelGeometry& geometry() const = 0;
  // Resident bytes of weights (packed linears count packed).
  virtual int64_t weight_bytes() const = 0;
  virtual bool quantized() const = 0;

  // Logits fp32 of whole windows: tokens [sequences × length] -> `out` [sequences × length ×
  // vocab]. For scoring.
  virtual absl::Status WindowLogits(const std::vector<int32_t>& tokens, int64_t sequences,
                                    std::vector<float>* out) = 0;

  // Decoding with a KV cache: Reset, then Decode appends tokens and gives the logits [vocab] after
  // the last one. OUT_OF_RANGE beyond the model's positions.
  virtual void ResetCache() = 0;
  virtual absl::StatusOr<std::vector<float>> Decode(const std::vector<int32_t>& tokens) = 0;
};

struct Score {
  double perplexity = 0;
  int64_t tokens = 0;  // predicted tokens
  double seconds = 0;
};
struct ComparisonResult {
  double perplexity = 0;
  double reference_perplexity = 0;
  double kl = 0;  // mean KL(reference || model) per predicted token, nats
  double top1_agreement = 0;
  int64_t tokens = 0;
  double seconds = 0;
};

// `windows` [sequences × length] token ids. `cancelled` is asked between batches (may be empty).
absl::StatusOr<Score> ScoreWindows(Model& model, const std::vector<int32_t>& windows,
                                   int64_t length, const std::function<bool()>& cancelled);
absl::StatusOr<ComparisonResult> CompareWindows(Model& model, Model& reference,
                                                const std::vector<int32_t>& windows, int64_t length,
                                                const std::function<bool()>& cancelled);

struct Sampling {
  double temperature = 0;  // 0: greedy
  double top_p = 1;
  uint64_t seed = 0;
};
// One sampled id; `step` makes draws independent of call history. Greedy ties take the lowest id.
int32_t SampleToken(const std::vector<float>& logits, const Sampling& sampling, uint64_t step);

}  // namespace gradq
