#include "tests/bench/product_rows_cuda.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "lib/base/strings.h"
#include "lib/kernels/float16.h"

namespace gradq {
namespace {

using kernels::TileEncoding;

const char* EncodingName(TileEncoding encoding) {
  return encoding == TileEncoding::kLut ? "lut" : "affine";
}

// The product that differs from `row` in batch and outliers only.
const ProductRow* Find(std::span<const ProductRow> rows, const ProductRow& row, int64_t batch,
                       double outlier_percent) {
  for (const ProductRow& other : rows) {
    if (other.chosen && other.shape == row.shape && other.encoding == row.encoding &&
        other.bits == row.bits && other.batch == batch &&
        other.outlier_percent == outlier_percent) {
      return &other;
    }
  }
  return nullptr;
}

// The bars' layer.
bool IsBarLayer(const ProductRow& row) {
  return row.out_features == 14336 && row.in_features == 4096;
}

// Row -> the number a bar is about, nothing where it does not apply.
using Measure = std::function<std::optional<double>(const ProductRow&)>;

Verdict Worst(std::string what, double bar, bool at_least, std::span<const ProductRow> rows,
              const Measure& measure) {
  Verdict verdict = {std::move(what), bar, at_least, std::nullopt, ""};
  for (const ProductRow& row : rows) {
    if (!row.chosen || row.encoding != TileEncoding::kLut) continue;
    const std::optional<double> value = measure(row);
    if (!value.has_value()) continue;
    if (!verdict.measured.has_value() ||
        (at_least ? *value < *verdict.measured : *value > *verdict.measured)) {
      verdict.measured = value;
      verdict.worst = absl::StrFormat("%s, %d bits, %g %% outliers, batch %d", row.shape, row.bits,
                                      row.outlier_percent, row.batch);
    }
  }
  return verdict;
}

// × cuBLAS for batches first .. last of all layers.
Verdict BatchVerdict(int64_t first, int64_t last, double bar, std::span<const ProductRow> rows) {
  const std::string batch = first == last ? StrCat(first) : StrCat(first, "-", last);
  return Worst(StrCat("batch ", batch, ": x cuBLAS fp16"), bar, true, rows,
               [first, last](const ProductRow& row) -> std::optional<double> {
                 if (row.batch < first || row.batch > last || row.outlier_percent > 0) return {};
                 return Speedup(row);
               });
}

}  // namespace

double Speedup(const ProductRow& row) { return row.dense_seconds / row.seconds; }

double ReadShare(const ProductRow& row, const BenchConditions& conditions) {
  return static_cast<double>(row.read_bytes) / row.seconds / conditions.read_bytes_per_second;
}

bool Correct(const ProductRow& row) { return row.repeatable && row.error <= 1; }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double OutputError(uint16_t y, std::span<const uint16_t> x, std::span<const float> weights) {
  const double value = kernels::Float16ToFloat(y);
  if (!std::isfinite(value)) return std::numeric_limits<double>::infinity();
  double sum = 0, magnitude = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double product = static_cast<double>(weights[i]) * kernels::Float16ToFloat(x[i]);
    sum += product;
    magnitude += std::abs(product);
  }
  const int exponent = sum == 0 ? -14 : std::max(-14, std::ilogb(sum));
  return std::abs(value - sum) / (1e-3 * magnitude + std::ldexp(1.0, exponent - 10));
}

std::string TableHead() {
  return "| layer | bits | outliers | batch | path | us | cuBLAS fp16 us | x cuBLAS | packed MB | "
         "of read bandwidth | error / bound |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
}

std::string TableLine(const ProductRow& row, const BenchConditions& conditions) {
  const std::string bits =
      row.encoding == TileEncoding::kLut ? StrCat(row.bits) : StrCat(row.bits, " affine");
  return absl::StrFormat(
      "| %s | %s | %g %% | %d | %s%s | %.2f | %.2f | %.2f | %.2f | %.3f | %.2f%s |\n", row.shape,
      bits, row.outlier_percent, row.batch, row.path, row.chosen ? "" : " (not chosen)",
      row.seconds * 1e6, row.dense_seconds * 1e6, Speedup(row),
      static_cast<double>(row.read_bytes) / 1e6, ReadShare(row, conditions), row.error,
      !row.repeatable     ? " RUNS DIFFER"
      : !(row.error <= 1) ? " WRONG"
                          : "");
}

std::string ConditionsLine(const BenchConditions& conditions) {
  return absl::StrFormat(
      "%s, %d multiprocessors, L2 %.0f MiB; read bandwidth %.1f GB/s; empty graph node %.2f us; "
      "medians of %d interleaved rounds",
      conditions.device, conditions.multiprocessors,
      static_cast<double>(conditions.l2_bytes) / (1 << 20), conditions.read_bytes_per_second / 1e9,
      conditions.empty_node_seconds * 1e6, conditions.rounds);
}

nlohmann::json ToJson(const ProductRow& row, const BenchConditions& conditions) {
  return {{"layer", row.shape},
          {"out_features", row.out_features},
          {"in_features", row.in_features},
          {"encoding", EncodingName(row.encoding)},
          {"bits", row.bits},
          {"outlier_percent", row.outlier_percent},
          {"batch", row.batch},
          {"path", row.path},
          {"chosen", row.chosen},
          {"us", row.seconds * 1e6},
          {"cublas_us", row.dense_seconds * 1e6},
          {"speedup", Speedup(row)},
          {"read_bytes", row.read_bytes},
          {"read_share", ReadShare(row, conditions)},
          {"error_over_bound", row.error},
          {"repeatable", row.repeatable}};
}

nlohmann::json ToJson(const BenchConditions& conditions) {
  return {{"device", conditions.device},
          {"multiprocessors", conditions.multiprocessors},
          {"l2_bytes", conditions.l2_bytes},
          {"read_gb_per_s", conditions.read_bytes_per_second / 1e9},
          {"empty_node_us", conditions.empty_node_seconds * 1e6},
          {"rounds", conditions.rounds}};
}

bool Verdict::met() const {
  return measured.has_value() && (at_least ? *measured >= bar : *measured <= bar);
}

std::vector<Verdict> Judge(std::span<const ProductRow> rows, const BenchConditions& conditions) {
  std::vector<Verdict> verdicts;
  for (const auto& [bits, bar] : {std::pair(2, 5.0), std::pair(3, 3.8), std::pair(4, 3.0)}) {
    verdicts.push_back(Worst(
        StrCat("14336x4096, batch 1, ", bits, " bits: x cuBLAS fp16"), bar, true, rows,
        [bits = bits](const ProductRow& row) -> std::optional<double> {
          if (!IsBarLayer(row) || row.batch != 1 || row.bits != bits || row.outlier_percent > 0)
            return {};
          return Speedup(row);
        }));
  }
  verdicts.push_back(Worst("14336x4096, batch 1: of read bandwidth", 0.6, true, rows,
                           [&](const ProductRow& row) -> std::optional<double> {
                             if (!IsBarLayer(row) || row.batch != 1 || row.outlier_percent > 0)
                               return {};
                             return ReadShare(row, conditions);
                           }));
  verdicts.push_back(Worst("60 MB packed and more, batch 1: of read bandwidth", 0.75, true, rows,
                           [&](const ProductRow& row) -> std::optional<double> {
                             if (row.read_bytes < 60'000'000 || row.batch != 1 ||
                                 row.outlier_percent > 0)
                               return {};
                             return ReadShare(row, conditions);
                           }));
  verdicts.push_back(Worst("14336x4096, batch 8: time over batch 1", 1.1, false, rows,
                           [&](const ProductRow& row) -> std::optional<double> {
                             if (!IsBarLayer(row) || row.batch != 8) return {};
                             const ProductRow* one = Find(rows, row, 1, row.outlier_percent);
                             if (one == nullptr) return {};
                             return row.seconds / one->seconds;
                           }));
  verdicts.push_back(BatchVerdict(32, 64, 2.0, rows));
  verdicts.push_back(BatchVerdict(128, 128, 1.2, rows));
  verdicts.push_back(BatchVerdict(192, 1024, 0.85, rows));
  verdicts.push_back(BatchVerdict(4096, 4096, 0.9, rows));
  verdicts.push_back(Worst("outliers: time over that without", 1.1, false, rows,
                           [&](const ProductRow& row) -> std::optional<double> {
                             if (row.outlier_percent == 0) return {};
                             const ProductRow* plain = Find(rows, row, row.batch, 0);
                             if (plain == nullptr) return {};
                             return row.seconds / plain->seconds;
                           }));
  verdicts.push_back(Worst("error over its bound, infinite where runs differ", 1, false, rows,
                           [](const ProductRow& row) -> std::optional<double> {
                             if (!row.repeatable) return std::numeric_limits<double>::infinity();
                             return row.error;
                           }));
  return verdicts;
}

std::string VerdictLine(const Verdict& verdict) {
  const std::string bar =
      absl::StrFormat("%s %g", verdict.at_least ? "at least" : "at most", verdict.bar);
  if (!verdict.measured.has_value()) {
    return absl::StrFormat("%s: not measured (bar %s)\n", verdict.what, bar);
  }
  return absl::StrFormat("%s: %.3f, bar %s %s; worst: %s\n", verdict.what, *verdict.measured, bar,
                         verdict.met() ? "met" : "MISSED", verdict.worst);
}

}  // namespace gradq
