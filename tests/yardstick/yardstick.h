#pragma once

// Runs gradq's methods on a bundled model and puts them beside the published code's results on the
// same model and tokens (tests/golden/yardstick/*.json; numbers made by running that code). Used by
// the golden test, which holds the bars, and by tests/bench/yardstick, which prints the table.

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace gradq {

class ThreadPool;

struct YardstickRow {
  std::string method;  // as in the JSON: "squeezellm", "lnq", "lnq+guidedquant", or with
                       // " --solver published" behind
  int bits = 0;
  int groups = 0;  // 0: the method has none
  double perplexity = 0;
  double published_perplexity = 0;
  // Objectives over the published ones: of the sums over all linears, and the largest of a linear;
  // 0 where the method minimises none.
  double objective_ratio = 0;
  double worst_linear_ratio = 0;
  std::string worst_linear;
  // On the calibration windows, nats per token; 0 without gradients.
  double predicted_loss_increase = 0;
  double measured_loss_increase = 0;
  double solve_seconds = 0;
};

struct Yardstick {
  double dense_perplexity = 0;
  double published_dense_perplexity = 0;
  std::vector<YardstickRow> rows;
};

// `model`: "docs-llama-6m" or "tiny-llama". `wanted` (may be empty: all) is asked with the row's
// method, bits and groups before it is run.
absl::StatusOr<Yardstick> RunYardstick(const std::string& model, ThreadPool* pool,
                                       const std::function<bool(const YardstickRow& row)>& wanted);

}  // namespace gradq
