#include "lib/inference/scoring.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"

namespace gradq {
namespace {

// Rows [begin, begin + rows) of a window predict tokens begin + 1, ... of it.
struct Piece {
  int64_t window = 0;  // of the batch
  int64_t begin = 0;
  int64_t rows = 0;
};

struct Batch {
  std::span<const int32_t> tokens;  // [sequences × length]
  int64_t sequences = 0;
};

absl::Status CheckWindows(std::span<const int32_t> windows, int64_t length) {
  if (length < 2) {
    return absl::InvalidArgumentError(StrCat("window length must be at least 2: ", length));
  }
  if (windows.empty() || static_cast<int64_t>(windows.size()) % length != 0) {
    return absl::InvalidArgumentError(
        StrCat("tokens are not whole windows: ", windows.size(), ", ", length));
  }
  return absl::OkStatus();
}

// Calls `run` per batch and then `use` per piece of it, in order.
absl::Status ForPieces(std::span<const int32_t> windows, int64_t length, int64_t vocabulary,
                       const ScoringLimits& limits, const std::function<bool()>& cancelled,
                       absl::FunctionRef<absl::Status(const Batch&)> run,
                       absl::FunctionRef<absl::Status(const Batch&, const Piece&)> use) {
  const int64_t sequences = static_cast<int64_t>(windows.size()) / length;
  const int64_t per_batch = std::max<int64_t>(1, limits.batch_tokens / length);
  const int64_t rows =
      std::max<int64_t>(1, limits.row_bytes / (vocabulary * int64_t{sizeof(float)}));
  for (int64_t first = 0; first < sequences; first += per_batch) {
    if (cancelled && cancelled()) return absl::CancelledError("cancelled");
    Batch batch;
    batch.sequences = std::min(per_batch, sequences - first);
    batch.tokens = windows.subspan(first * length, batch.sequences * length);
    GRADQ_RETURN_IF_ERROR(run(batch));
    for (int64_t window = 0; window < batch.sequences; ++window) {
      for (int64_t begin = 0; begin < length - 1; begin += rows) {
        GRADQ_RETURN_IF_ERROR(use(batch, {window, begin, std::min(rows, length - 1 - begin)}));
      }
    }
  }
  return absl::OkStatus();
}

// Adds -ln p of the tokens that the rows of `piece` predict.
void AddLosses(std::span<const float> log_probabilities, int64_t vocabulary, const Batch& batch,
               const Piece& piece, int64_t length, double* sum) {
  for (int64_t row = 0; row < piece.rows; ++row) {
    const int32_t next = batch.tokens[piece.window * length + piece.begin + row + 1];
    *sum -= double{log_probabilities[row * vocabulary + next]};
  }
}

struct Distance {
  double kl = 0;
  bool agrees = false;
};

Distance RowDistance(const float* model, const float* reference, int64_t vocabulary) {
  Distance distance;
  int64_t model_top = 0, reference_top = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    distance.kl += double{std::exp(reference[i])} * (double{reference[i]} - double{model[i]});
    if (model[i] > model[model_top]) model_top = i;
    if (reference[i] > reference[reference_top]) reference_top = i;
  }
  distance.agrees = model_top == reference_top;
  return distance;
}

double SecondsSince(absl::Duration start) {
  return absl::ToDoubleSeconds(Clock::Real().Monotonic() - start);
}

}  // namespace

absl::StatusOr<Score> ScoreWindows(Model& model, std::span<const int32_t> windows, int64_t length,
                                   const std::function<bool()>& cancelled,
                                   const ScoringLimits& limits) {
  GRADQ_RETURN_IF_ERROR(CheckWindows(windows, length));
  const absl::Duration start = Clock::Real().Monotonic();
  const int64_t vocabulary = model.geometry().vocab_size;
  Score score;
  double sum = 0;
  GRADQ_RETURN_IF_ERROR(ForPieces(
      windows, length, vocabulary, limits, cancelled,
      [&](const Batch& batch) { return model.RunWindows(batch.tokens, batch.sequences); },
      [&](const Batch& batch, const Piece& piece) -> absl::Status {
        GRADQ_ASSIGN_OR_RETURN(
            const std::span<const float> rows,
            model.LogProbabilities(piece.window * length + piece.begin, piece.rows));
        AddLosses(rows, vocabulary, batch, piece, length, &sum);
        score.tokens += piece.rows;
        return absl::OkStatus();
      }));
  score.perplexity = std::exp(sum / static_cast<double>(score.tokens));
  score.seconds = SecondsSince(start);
  return score;
}

absl::StatusOr<ComparisonResult> CompareWindows(Model& model, Model& reference,
                                                std::span<const int32_t> windows, int64_t length,
                                                ThreadPool* pool,
                                                const std::function<bool()>& cancelled,
                                                const ScoringLimits& limits) {
  GRADQ_RETURN_IF_ERROR(CheckWindows(windows, length));
  const int64_t vocabulary = model.geometry().vocab_size;
  if (reference.geometry().vocab_size != vocabulary) {
    return absl::InvalidArgumentError(StrCat("model and reference have different vocabularies: ",
                                             vocabulary, ", ", reference.geometry().vocab_size));
  }
  const absl::Duration start = Clock::Real().Monotonic();
  ComparisonResult result;
  double sum = 0, reference_sum = 0, kl = 0;
  int64_t agreeing = 0;
  std::vector<Distance> distances;
  std::vector<float> own;
  const auto run = [&](const Batch& batch) -> absl::Status {
    GRADQ_RETURN_IF_ERROR(model.RunWindows(batch.tokens, batch.sequences));
    if (&model == &reference) return absl::OkStatus();
    return reference.RunWindows(batch.tokens, batch.sequences);
  };
  const auto use = [&](const Batch& batch, const Piece& piece) -> absl::Status {
    const int64_t begin = piece.window * length + piece.begin;
    GRADQ_ASSIGN_OR_RETURN(std::span<const float> ours, model.LogProbabilities(begin, piece.rows));
    if (&model == &reference) {
      own.assign(ours.begin(), ours.end());
      ours = own;
    }
    GRADQ_ASSIGN_OR_RETURN(const std::span<const float> theirs,
                           reference.LogProbabilities(begin, piece.rows));
    AddLosses(ours, vocabulary, batch, piece, length, &sum);
    AddLosses(theirs, vocabulary, batch, piece, length, &reference_sum);
    distances.resize(piece.rows);
    const auto measure = [&](int64_t row, int) {
      distances[row] =
          RowDistance(ours.data() + row * vocabulary, theirs.data() + row * vocabulary, vocabulary);
    };
    if (pool != nullptr) {
      pool->ParallelFor(piece.rows, measure);
    } else {
      for (int64_t row = 0; row < piece.rows; ++row) measure(row, 0);
    }
    for (const Distance& distance : distances) {
      kl += distance.kl;
      agreeing += distance.agrees ? 1 : 0;
    }
    result.tokens += piece.rows;
    return absl::OkStatus();
  };
  GRADQ_RETURN_IF_ERROR(ForPieces(windows, length, vocabulary, limits, cancelled, run, use));
  const auto tokens = static_cast<double>(result.tokens);
  result.perplexity = std::exp(sum / tokens);
  result.reference_perplexity = std::exp(reference_sum / tokens);
  result.kl = kl / tokens;
  result.top1_agreement = static_cast<double>(agreeing) / tokens;
  result.seconds = SecondsSince(start);
  return result;
}

}  // namespace gradq
